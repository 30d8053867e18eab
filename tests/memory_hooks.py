"""SGLang's modules in this process, hooked as a scheduler process hooks them."""

import os
from pathlib import Path

from sglang.srt import runtime_context
from sglang.srt.server_args import ServerArgs

from raas_patches import installation
from raas_patches.active import attach_config
from raas_sglang.config import RaasConfig

ROOT = next(path for path in Path(__file__).parents if (path / "reasoner").exists())
MODEL = str(ROOT / "reasoner" / "model")
# SGLang's paged allocator is Triton, which decides at import whether it runs on the CPU.
PAGE_SIZE = 16 if os.environ.get("TRITON_INTERPRET") == "1" else 1


def install_hooks(model_path: str, page_size: int) -> ServerArgs:
    """Publishes arguments for this process and hooks SGLang, as a scheduler process does."""
    server_args = ServerArgs(
        model_path=model_path,
        device="cpu",
        attention_backend="torch_native",
        page_size=page_size,
        pp_max_micro_batch_size=32,
    )
    attach_config(server_args, RaasConfig(kv_policy="raas", kv_budget=64))
    runtime_context.publish(server_args, role="test")
    installation.require_seams()
    return server_args
