"""`sglang.srt.mem_cache.unified_radix_cache`: what the radix tree takes of a request.

Why: the tree keeps what a request computed, so that others may share it. A slot that a request
overwrites in place must not be shared. How: SGLang passes the length that the tree may take, and
frees the rest itself; for a request that overwrites, the hook passes the length of the prompt.
Where a model has linear attention it passes none: the prompt is in the tree since it was prefilled,
and SGLang would keep the state after the whole text as that after the prompt. Remove when: SGLang
asks a request how much of it the tree may take.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sglang.srt.plugins.hook_registry import HookType

from raas_patches.seam import Seam
from raas_sglang.pool import pool_of

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache


def checkpoint(
    original: Callable[..., None],
    self: "UnifiedRadixCache",
    req: "Req",
    *,
    up_to: int,
    **kwargs: Any,
) -> None:
    """Around it: keeps `tree_purity`, and notes that plans with the old slots no longer hold."""
    # The tree may exchange slots of the prompt for its own.
    pool_of(self.token_to_kv_pool_allocator).state.slots_changed()
    shared = req.raas.finish(up_to) if req.finished() else req.raas.shareable_len(up_to)
    if shared < up_to and self.supports_mamba():
        shared = 0  # the only state of linear attention is that after the whole text
    original(self, req, up_to=shared, **kwargs)


SEAMS = (
    Seam(
        "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.checkpoint",
        HookType.AROUND,
        checkpoint,
        ("self", "req", "up_to", "kwargs"),
        "keeps overwritten tokens out of the radix tree",
        "SGLang asks a request how much of it the tree may take",
        "tests/server/test_budget.py::test_tree_purity_around_the_first_overwrite",
    ),
)
