"""What a decode step does to the requests of a batch, before SGLang runs it.

A saturated request allocates nothing: its row of slots stays as it is. One that was prefilled with
generated tokens, because it was retracted, first has its budget laid out again.
"""

from collections.abc import Callable, Iterable
from copy import copy
from typing import TYPE_CHECKING

import torch

from raas_sglang.pool import RaasTokenToKVPool

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

Allocate = Callable[["ScheduleBatch"], torch.Tensor]


def admit(batch: "ScheduleBatch", pool: RaasTokenToKVPool) -> None:
    """Notes what a prefill computes, once its requests have slots."""
    states = [req.raas for req in batch.reqs]
    for state, seq_len in zip(states, batch.seq_lens_cpu.tolist(), strict=True):
        state.prefilled(seq_len)
    pool.state.admit([req.kv.req_pool_idx for req in batch.reqs], states)


def growing(reqs: list["Req"], indices: Iterable[int] | None = None) -> list[int]:
    """Which requests, of these indices or of all, take a slot for their next token."""
    indices = range(len(reqs)) if indices is None else indices
    return [i for i in indices if not reqs[i].raas.is_saturated]


def begin_step(batch: "ScheduleBatch", pool: RaasTokenToKVPool, allocate: Allocate) -> torch.Tensor:
    """Lets every request of a decode batch grow by one token.

    Args:
        batch: SGLang's, with its lengths before the step.
        pool: Holds the slots.
        allocate: SGLang's allocation of a slot for each row of a batch.

    Returns:
        [B] int64 on the device: the slot of each new token; 0, SGLang's padding slot, for a
        saturated request, whose store overwrites a slot that it has.
    """
    _resume(batch, pool)
    rows = growing(batch.reqs)
    if len(rows) == len(batch.reqs):
        locations = allocate(batch)
    else:
        locations = torch.zeros(len(batch.reqs), dtype=torch.int64, device=batch.device)
        if rows:
            part, index = _part(batch, rows)
            locations[index] = allocate(part)
    states = [req.raas for req in batch.reqs]
    for state in states:
        state.step()
    pool.state.begin_step(
        batch.req_pool_indices_cpu,
        torch.tensor([state.logical_len for state in states]),
        torch.tensor([state.resident_len for state in states]),
    )
    return locations


def _part(batch: "ScheduleBatch", rows: list[int]) -> tuple["ScheduleBatch", torch.Tensor]:
    """Some rows of a batch, as far as allocation reads it, and their indices on the device.

    As long as a request grows, its logical and resident lengths are the same.
    """
    part, index = copy(batch), torch.tensor(rows)
    on_device = index.to(batch.device, non_blocking=True)
    part.reqs = [batch.reqs[i] for i in rows]
    part.seq_lens, part.seq_lens_cpu = batch.seq_lens[on_device], batch.seq_lens_cpu[index]
    part.req_pool_indices = batch.req_pool_indices[on_device]
    part.req_pool_indices_cpu = batch.req_pool_indices_cpu[index]
    return part, on_device


def _resume(batch: "ScheduleBatch", pool: RaasTokenToKVPool) -> None:
    """Lays budgets out again that were prefilled, and restores the logical lengths."""
    resuming = [req for req in batch.reqs if req.raas.is_resuming]
    for req in resuming:
        pool.resume(req.kv.req_pool_idx, req.raas)
        req.raas.resume()
    if any(req.raas.has_overwritten for req in resuming):
        logical = torch.tensor([req.raas.logical_len for req in batch.reqs])
        # New tensors, since a step in flight may read the old ones.
        batch.seq_lens_cpu = logical
        batch.seq_lens = logical.to(batch.device, non_blocking=True)
        # With `kv_prompt_len` the input has generated tokens, which `orig_seq_lens` counts already.
        lengths = batch.seq_lens.to(batch.orig_seq_lens.dtype)
        batch.orig_seq_lens = torch.maximum(batch.orig_seq_lens, lengths)
