"""`sglang.srt.configs.update_config`: Qwen2 models with a head size of their own on the CPU.

Why: on the CPU SGLang 0.5.17 notes the number of heads before padding on every configuration, and
its Qwen2 then takes ``hidden_size // heads`` for the head size, whatever ``head_dim`` says; the
bundled reasoner (8 heads of 64, hidden size 256) cannot be served so. How: the note is taken back
where nothing was padded. It is a plugin of its own, so that SGLang without RaaS serves the same
model (``SGLANG_PLUGINS=qwen2_head_dim``). Remove when: SGLang's Qwen2 reads ``head_dim`` first.
"""

from typing import Any

from sglang.srt.plugins.hook_registry import HookType

from raas_patches.seam import Seam


def adjust_config(model_config: Any, *_: Any) -> Any:
    """After `adjust_config_with_unaligned_cpu_tp`: keeps an explicit head size."""
    for config in (model_config.hf_config, model_config.hf_text_config):
        padded = getattr(config, "original_num_attention_heads", None) != config.num_attention_heads
        if config.model_type == "qwen2" and hasattr(config, "head_dim") and not padded:
            del config.original_num_attention_heads
    return model_config


SEAMS = (
    Seam(
        "sglang.srt.configs.update_config.adjust_config_with_unaligned_cpu_tp",
        HookType.AFTER,
        adjust_config,
        ("model_config", "load_config", "tp_size"),
        "serves Qwen2 models with an explicit head size on the CPU",
        "SGLang's Qwen2 reads head_dim first",
    ),
)


def register() -> None:
    """Entry point of the plugin ``qwen2_head_dim``."""
    for seam in SEAMS:
        if seam.problem() is None:
            seam.install()
