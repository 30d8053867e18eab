"""SGLang's attention-backend registry: our decode under the name the user chose.

Why: decode must store in place and read resident lengths. How: the registry's own decorator, so
nothing is patched. Remove when: a backend can be chosen by class.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.srt.model_executor.model_runner import ModelRunner

    from raas_sglang.attention import RaasTorchNativeAttnBackend


def register_backends() -> None:
    """Replaces the backends that RaaS supports, in this process."""
    from sglang.srt.layers.attention.attention_registry import register_attention_backend

    register_attention_backend("torch_native")(_torch_native)


def _torch_native(model_runner: "ModelRunner") -> "RaasTorchNativeAttnBackend":
    from raas_sglang.attention import RaasTorchNativeAttnBackend

    return RaasTorchNativeAttnBackend(model_runner)
