"""`sglang.srt.mem_cache.allocation`: requests get their slots, or none when they are saturated.

Why: a saturated request overwrites a slot that it has. How: its rows are left out of SGLang's
allocation. Remove when: SGLang asks a request how many slots it needs.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.plugins.hook_registry import HookType

from raas_patches.seam import Seam
from raas_sglang.life import step
from raas_sglang.pool import pool_of

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch


def alloc_for_extend(_: Any, batch: "ScheduleBatch") -> None:
    """After it: the requests have their slots, so the eviction state can be addressed."""
    step.admit(batch, pool_of(batch.token_to_kv_pool_allocator))


def alloc_for_decode(
    original: Callable[["ScheduleBatch", int], torch.Tensor],
    batch: "ScheduleBatch",
    token_per_req: int,
) -> torch.Tensor:
    """Around it: allocates for the rows that still grow."""
    pool = pool_of(batch.token_to_kv_pool_allocator)
    return step.begin_step(batch, pool, lambda part: original(part, token_per_req))


_PATH = "sglang.srt.mem_cache.allocation."
SEAMS = (
    Seam(
        _PATH + "alloc_for_extend",
        HookType.AFTER,
        alloc_for_extend,
        ("batch",),
        "writes policy, prompt length and budget where the kernels read them",
        "SGLang lets a KV pool see the requests it is given",
        "tests/memory/test_admission.py::test_a_request_generates_eight_times_the_pool",
    ),
    Seam(
        _PATH + "alloc_for_decode",
        HookType.AROUND,
        alloc_for_decode,
        ("batch", "token_per_req"),
        "allocates nothing for saturated requests, and begins the step of all",
        "SGLang asks a request how many slots it needs",
        "tests/memory/test_admission.py::test_a_request_generates_eight_times_the_pool",
    ),
)
