"""Plays requests through SGLang's scheduler with our hooks: ``python -m raas_sglang check --deep``.

Requests, admission, retraction, results, allocator and radix tree are SGLang's own. Only the loop
around them is written here, and a forward pass that stores tokens which can be told apart.
"""
