"""Qwen2 models with a head size of their own on SGLang's CPU engine.

There SGLang 0.5.23 notes the number of heads before padding on every configuration, and its Qwen2
then takes ``hidden_size // heads`` for the head size, whatever ``head_dim`` says; the bundled
reasoner (8 heads of 64, hidden size 256) cannot be served so. The note is taken back where nothing
was padded. Remove when: SGLang's Qwen2 reads ``head_dim`` first.
"""

from typing import Any

from sglang.srt.models import qwen2


class Qwen2ForCausalLM(qwen2.Qwen2ForCausalLM):
    """SGLang's model; the name is the architecture that it is found by."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        noted = getattr(config, "original_num_attention_heads", None)
        if noted == config.num_attention_heads and hasattr(config, "head_dim"):
            del config.original_num_attention_heads
        super().__init__(config, *args, **kwargs)


EntryClass = Qwen2ForCausalLM
