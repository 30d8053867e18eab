"""A request that was interrupted goes on: prefilled again, then cut back to its budget.

SGLang prefills prompt and output of a retracted request. The boundary between prompt and generated
tokens does not move: the last L generated tokens become the budget, the others are given back.
"""

from typing import TYPE_CHECKING

from sglang.srt.utils.common import ceil_align

from raas_sglang.pool import pool_of
from raas_sglang.request import RequestState

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch


def is_resuming(req: "Req") -> bool:
    """Whether generated tokens were prefilled and no step has been decoded since."""
    state: RequestState = req.raas
    return state.options.evicts and state.generated_len > 0 and req.decode_batch_idx == 0


def resume(req: "Req", batch: "ScheduleBatch") -> None:
    """Rebuilds the eviction state from the prefilled tokens and frees the slots above P + L."""
    state: RequestState = req.raas
    pool = pool_of(batch.token_to_kv_pool_allocator)
    pool.resume(req.req_pool_idx, state)
    if not state.has_overwritten:
        return
    allocator = batch.token_to_kv_pool_allocator
    start = ceil_align(state.capacity, allocator.page_size)
    allocated = req.kv.kv_allocated_len
    if start < allocated:
        row = batch.req_to_token_pool.req_to_token[req.req_pool_idx]
        allocator.free_segment(row[start:allocated], start_pos=start)
    req.kv.kv_allocated_len = req.kv_committed_len = state.capacity
