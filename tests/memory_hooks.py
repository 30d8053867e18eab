"""SGLang's modules in this process, hooked as a scheduler process hooks them."""

import os
from pathlib import Path

from sglang.srt.server_args import ServerArgs

from raas_patches.probe.process import become_scheduler_of

ROOT = next(path for path in Path(__file__).parents if (path / "reasoner").exists())
MODEL = str(ROOT / "reasoner" / "model")
# SGLang's paged allocator is Triton, which decides at import whether it runs on the CPU.
PAGE_SIZE = 16 if os.environ.get("TRITON_INTERPRET") == "1" else 1


def install_hooks(model_path: str, page_size: int) -> ServerArgs:
    """Publishes arguments for this process and hooks SGLang, as a scheduler process does."""
    return become_scheduler_of(model_path, page_size=page_size, kv_budget=64)
