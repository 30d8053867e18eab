"""Eviction rules on real models, without a server: 1,000 answers of one rule in seconds on a GPU.

`python -m benchmarks.accuracy.study.run` decodes greedily from any Llama, Qwen2 or
Qwen3 checkpoint. Prompts stay whole; of the generated tokens each layer and KV head keeps L, chosen
by a rule of `rules.RULES`. A rule may read here what the engine could not afford, so that rules are
compared before one is built.

`python -m benchmarks.accuracy.study.forced` feeds given answers instead, and compares losses.
"""
