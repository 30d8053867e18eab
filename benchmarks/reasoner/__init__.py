"""A tiny language model that reasons step by step, with the task that it solves.

Import it as ``reasoner`` with ``benchmarks/`` on ``sys.path``. ``reasoner.problem`` makes and
grades problems with the standard library alone; the other modules need torch and transformers.
"""
