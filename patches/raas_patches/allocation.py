"""`sglang.srt.mem_cache.allocation`: a saturated request allocates nothing.

Why: it overwrites a slot that it has. How: its rows are left out of the allocation and get slot 0,
SGLang's padding slot, which the in-place store does not use. Remove when: SGLang asks a request how
many slots it needs.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from sglang.srt.mem_cache import allocation
from sglang.srt.plugins.hook_registry import HookType

from raas_patches.resume import resume
from raas_patches.seam import Seam
from raas_sglang.pool import pool_of
from raas_sglang.request import RequestState

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch

ExtendResult = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def alloc_for_extend(_: ExtendResult, batch: "ScheduleBatch") -> None:
    """After it: the requests have their slots, so the eviction state can be addressed."""
    for req, seq_len in zip(batch.reqs, batch.seq_lens_cpu.tolist(), strict=True):
        state: RequestState = req.raas
        state.prefilled(seq_len)
    pool = pool_of(batch.token_to_kv_pool_allocator)
    pool.state.admit([req.kv.req_pool_idx for req in batch.reqs], [req.raas for req in batch.reqs])


def alloc_for_decode(
    original: Callable[["ScheduleBatch", int], torch.Tensor],
    batch: "ScheduleBatch",
    token_per_req: int,
) -> torch.Tensor:
    """Around it: allocates for the rows that still grow."""
    resume(batch)
    state = pool_of(batch.token_to_kv_pool_allocator).state
    saturated = state.saturated(batch.req_pool_indices_cpu, batch.seq_lens_cpu)
    if not saturated.any():
        return original(batch, token_per_req)
    locations = torch.zeros(len(batch.reqs), dtype=torch.int64, device=batch.device)
    rows = saturated.logical_not().nonzero()[:, 0]
    if len(rows):
        rows_device = rows.to(batch.device, non_blocking=True)
        allocated = _allocate(batch, rows, rows_device)
        locations[rows_device] = allocated
        batch.req_to_token_pool.write(
            (batch.req_pool_indices[rows_device], batch.seq_lens[rows_device]),
            allocated.to(torch.int32),
        )
        for i in rows.tolist():
            kv = batch.reqs[i].kv
            kv.kv_allocated_len += token_per_req
            kv.kv_committed_len += token_per_req
    return locations


def _allocate(
    batch: "ScheduleBatch", rows: torch.Tensor, rows_device: torch.Tensor
) -> torch.Tensor:
    """One slot for each growing row; their logical and resident lengths are still the same."""
    if batch.tree_cache.page_size == 1:
        slots: torch.Tensor = allocation.alloc_token_slots(batch.tree_cache, len(rows))
        return slots
    seq_lens = batch.seq_lens[rows_device]
    requests = batch.req_pool_indices[rows_device]
    paged: torch.Tensor = allocation.alloc_paged_token_slots_decode(
        tree_cache=batch.tree_cache,
        seq_lens=seq_lens + 1,
        seq_lens_cpu=batch.seq_lens_cpu[rows] + 1,
        last_loc=batch.req_to_token_pool.req_to_token[requests, seq_lens - 1],
        token_per_req=1,
        req_pool_indices=requests,
        batch=batch,
    )
    return paged


_PATH = "sglang.srt.mem_cache.allocation."
SEAMS = (
    Seam(
        _PATH + "alloc_for_extend",
        HookType.AFTER,
        alloc_for_extend,
        ("batch",),
        "writes policy, prompt length and budget where the kernels read them",
        "SGLang lets a KV pool see the requests it is given",
    ),
    Seam(
        _PATH + "alloc_for_decode",
        HookType.AROUND,
        alloc_for_decode,
        ("batch", "token_per_req"),
        "allocates nothing for saturated requests",
        "SGLang asks a request how many slots it needs",
    ),
)
