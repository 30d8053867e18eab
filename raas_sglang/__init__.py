"""RaaS for SGLang: the KV cache of a prompt stays whole, generated tokens share a fixed budget."""

__version__ = "0.2.0.dev0"

SUPPORTED_SGLANG = "0.5.23"
