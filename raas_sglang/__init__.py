"""RaaS for SGLang: the prompt's KV cache stays dense and shared, generated tokens share a budget."""

__version__ = "0.1.0"

SUPPORTED_SGLANG = "0.5.23"
