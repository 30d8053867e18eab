"""SGLang's attention-backend registry: our decode under the names the user knows.

Why: decode must store in place and read resident slots. How: the registry's own decorator, so
nothing is patched. Remove when: a backend can be chosen by class.
"""

from typing import TYPE_CHECKING

from raas_patches import installation

if TYPE_CHECKING:
    from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
    from sglang.srt.model_executor.model_runner import ModelRunner


def register_backends() -> None:
    """Replaces the backends that RaaS supports, in this process."""
    from sglang.srt.layers.attention.attention_registry import register_attention_backend

    register_attention_backend("torch_native")(_torch_native)
    register_attention_backend("flashinfer")(_flashinfer)


def _torch_native(model_runner: "ModelRunner") -> "AttentionBackend":
    from raas_sglang.attention.torch_native import RaasTorchNativeAttnBackend

    return RaasTorchNativeAttnBackend(model_runner)


def _flashinfer(model_runner: "ModelRunner") -> "AttentionBackend":
    options = {
        "skip_prefill": model_runner.prefill_attention_backend_str != "flashinfer",
        "init_new_workspace": model_runner.init_new_workspace,
    }
    from raas_sglang.attention.flashinfer import RaasFlashInferAttnBackend

    installation.require_flashinfer()
    return RaasFlashInferAttnBackend(model_runner, **options)
