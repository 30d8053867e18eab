"""`sglang.srt.models.utils`: no model stores the keys and values of a decode step itself.

Why: models that fuse the store into RoPE write to `out_cache_loc`, past the pool, which a saturated
request does not have. How: SGLang asks this function whether it may; in decode it may not. Remove
when: the fused store asks the pool.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from sglang.srt.plugins.hook_registry import HookType

from raas_patches.seam import Seam

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


def enable_fused_set_kv_buffer(
    original: Callable[["ForwardBatch"], bool], forward_batch: "ForwardBatch"
) -> bool:
    """Around it: prefill as SGLang decides, decode through the pool."""
    return not forward_batch.forward_mode.is_decode() and original(forward_batch)


SEAMS = (
    Seam(
        "sglang.srt.models.utils.enable_fused_set_kv_buffer",
        HookType.AROUND,
        enable_fused_set_kv_buffer,
        ("forward_batch",),
        "leaves the store of a decode step to the pool",
        "SGLang's fused store asks the pool",
        "tests/gpu/test_memory.py::test_budgets_hold",
    ),
)
