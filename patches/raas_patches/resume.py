"""A request that was interrupted goes on: prefilled again, its budget as the window would have it.

SGLang prefills an interrupted request again; of the generated tokens only the last L are. The
boundary between prompt and generated tokens does not move, and text goes on where it was.
"""

from typing import TYPE_CHECKING

import torch

from raas_sglang.pool import pool_of
from raas_sglang.request import RequestState

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch


def is_resuming(req: "Req") -> bool:
    """Whether generated tokens were prefilled and no step has been decoded since."""
    state: RequestState = req.raas
    return state.must_resume and req.decode_batch_idx == 0


def resume(batch: "ScheduleBatch") -> None:
    """Rebuilds the eviction state of resuming rows and restores their logical lengths."""
    pool = pool_of(batch.token_to_kv_pool_allocator)
    if not pool.state.resuming:
        return
    resuming = [req for req in batch.reqs if is_resuming(req)]
    pool.state.resuming -= {req.kv.req_pool_idx for req in resuming}
    for req in resuming:
        pool.resume(req.kv.req_pool_idx, req.raas)
    if any(req.raas.skipped_len for req in resuming):
        skipped = [req.raas.skipped_len if is_resuming(req) else 0 for req in batch.reqs]
        moved = torch.tensor(skipped, dtype=torch.int64)
        moved_device = moved.to(batch.device, non_blocking=True)
        # New tensors, since a step in flight may read the old ones.
        batch.seq_lens = batch.seq_lens + moved_device
        batch.seq_lens_cpu = batch.seq_lens_cpu + moved
        # What came as input is counted there already.
        logical = batch.seq_lens.to(batch.orig_seq_lens.dtype)
        batch.orig_seq_lens = torch.maximum(batch.orig_seq_lens, logical)
