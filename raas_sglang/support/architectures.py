"""Models that their configuration gives away, refused before anything of them is loaded.

SGLang keeps their keys and values in a pool that RaaS does not work with, or adds sinks to their
attention. What else there is, the layers tell once they are loaded (`models`).
"""

from typing import TYPE_CHECKING

from sglang.srt.configs.model_config import AttentionArch

if TYPE_CHECKING:
    from sglang.srt.configs.model_config import ModelConfig


def require_architecture(model_config: "ModelConfig") -> None:
    """Checks that nothing is known of a model that excludes RaaS.

    Raises:
        ValueError: something is.
    """
    known = {
        "attention sinks": model_config.has_attention_sinks,
        "sliding windows": model_config.is_hybrid_swa,
        "latent attention (MLA)": model_config.attention_arch == AttentionArch.MLA,
    }
    problems = [kind for kind, has_it in known.items() if has_it]
    if problems:
        name = model_config.hf_config.architectures[0]
        raise ValueError(of_another_kind(name, " and ".join(problems)))


def of_another_kind(name: str, has: str) -> str:
    """Says why a model is refused: what it has that excludes RaaS."""
    return (
        "--kv-policy must run on models whose layers all attend to the whole text in the same way, "
        f"got {name} with {has}; remove --kv-policy for this model"
    )
