"""The ops in plain torch: what a machine without Triton runs."""

import math
from typing import NamedTuple

import torch

from raas_kernels.buffers import EvictionBuffers, ScoreScratch, StepBuffers
from raas_kernels.layout import (
    MEMORY,
    PAPER_PAGE,
    UNSCALED,
    DecodeBatch,
    KeyCaches,
    KVScales,
    Policy,
    StepOptions,
)
from raas_kernels.torch_victims import Heads, Row, h2o_victim, paper_victim, raas_victims


def claim_slots(
    step: StepBuffers, batch: DecodeBatch, buffers: EvictionBuffers, options: StepOptions
) -> None:
    """As of `raas_kernels.ops.Ops.claim_slots`."""
    rows = _rows(batch, batch.requests.policies != Policy.DENSE)
    count, policy = batch.positions.shape[0], rows.policies[:, None]
    start = (batch.kv_indptr.long()[rows.row] + rows.prompt_lens)[:, None]
    full = (rows.step >= rows.budgets)[:, None]
    heads = torch.arange(buffers.births.shape[2], device=start.device)
    step.places[:, :count] = -1
    for layer in range(buffers.births.shape[0]):
        state, of_step = buffers.layer(layer), step.layer(layer)
        of_step.targets[:count] = batch.out_cache_loc.int()[:, None]
        victims = state.victims[rows.slots].long()
        turn = (rows.step % rows.periods.clamp(min=1))[:, None, None]
        place = victims.gather(2, turn.expand(-1, len(heads), 1))[..., 0]
        of_page = victims[..., 0] * PAPER_PAGE + (rows.step % PAPER_PAGE)[:, None]
        place = torch.where(policy == Policy.RAAS_PAPER, of_page, place)
        place = torch.where(policy == Policy.WINDOW, (rows.step % rows.budgets)[:, None], place)
        drawn = _mixed(rows.step, layer + options.layer_offset, heads + options.head_offset)
        place = torch.where(policy == Policy.RANDOM, drawn % rows.budgets[:, None], place)
        place = torch.where(full, place, rows.step[:, None])
        in_place = batch.kv_indices[torch.where(full, start + place, 0)].int()
        of_step.targets[rows.row] = torch.where(full, in_place, of_step.targets[rows.row])
        of_step.places[rows.row] = place.int()
        born = rows.slots[:, None], heads, place
        state.births[born] = rows.step.int()[:, None].expand_as(place)
        stamps = torch.where(policy == Policy.RAAS_PAPER, rows.step[:, None], 0)
        state.weights[born] = stamps.float().expand_as(place)


def store_decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    step: StepBuffers,
    batch: DecodeBatch,
    buffers: EvictionBuffers,
    scales: KVScales = UNSCALED,
) -> None:
    """As of `raas_kernels.ops.Ops.store_decode`."""
    count, heads = k.shape[0], torch.arange(k.shape[1], device=k.device)
    targets = step.targets[:count].long()
    keys = (k / (scales.k_scale or 1.0)).to(key_cache.dtype)
    values = (v / (scales.v_scale or 1.0)).to(value_cache.dtype)
    key_cache[targets, heads] = keys
    value_cache[targets, heads] = values
    rows = _rows(batch, batch.requests.policies != Policy.DENSE)
    norms = values[rows.row].float().norm(dim=2)
    buffers.value_norms[rows.slots[:, None], heads, step.places[rows.row].long()] = norms
    each_step = (rows.policies == Policy.RAAS_PAPER) | (rows.policies == Policy.H2O)
    step.queries[rows.row[each_step]] = q[rows.row[each_step]]
    _note_moments(rows.where(rows.policies == Policy.RAAS), q, k, buffers)


def _note_moments(
    rows: "_Rows", q: torch.Tensor, k: torch.Tensor, buffers: EvictionBuffers
) -> None:
    """Moves the moments of raas rows on: plain means at first, then ones that forget."""
    seen = (rows.step - rows.first_steps + 1)[:, None, None]
    share = (1 / seen).clamp(min=1 - math.exp(-1 / MEMORY))
    for x, means, variances in (
        (q, buffers.query_means, buffers.query_variances),
        (k, buffers.key_means, buffers.key_variances),
    ):
        mean = torch.where(seen > 1, means[rows.slots], 0.0)
        variance = torch.where(seen > 1, variances[rows.slots], 0.0)
        apart = x[rows.row].float() - mean
        means[rows.slots] = mean + share * apart
        variances[rows.slots] = (1 - share) * (variance + share * apart.square())


def score_tokens(
    scratch: ScoreScratch,
    keys: KeyCaches,
    step: StepBuffers,
    batch: DecodeBatch,
    buffers: EvictionBuffers,
    options: StepOptions,
) -> None:
    """As of `raas_kernels.ops.Ops.score_tokens`; ``scratch`` is not used."""
    done = batch.positions - batch.requests.prompt_lens + 1
    due = (batch.requests.periods > 0) & (done % batch.requests.periods.clamp(min=1) == 0)
    due &= (batch.requests.policies != Policy.RAAS) | (done >= batch.requests.budgets)
    for row in _rows(batch, due).each():
        start = int(batch.kv_indptr[row.row])
        held = min(row.step + 1, row.budget)
        resident = batch.kv_indices[start : start + row.prompt_len + held].long()
        # raas knows nothing of the prompt.
        read = resident[row.prompt_len :] if row.policy == Policy.RAAS else resident
        for layer, cache in enumerate(keys.layers):
            state = buffers.layer(layer)
            heads = Heads.of(row, state, held)
            key = cache[read].float().transpose(0, 1)
            if keys.scales is not None:
                key = key * keys.scales[layer]
            if row.policy == Policy.RAAS:
                raas_victims(row, key, heads, state, options)
                continue
            query = step.queries[layer, row.row].float().view(len(key), -1, key.shape[2])
            logits = query @ key.transpose(1, 2) * options.scaling
            if row.policy == Policy.RAAS_PAPER:
                paper_victim(row, logits[..., row.prompt_len :], heads)
            else:
                h2o_victim(row, logits, heads)


class _Rows(NamedTuple):
    """Some rows of a batch; every column is [E], all but ``row`` of the row's request."""

    row: torch.Tensor
    slots: torch.Tensor
    step: torch.Tensor
    policies: torch.Tensor
    prompt_lens: torch.Tensor
    budgets: torch.Tensor
    periods: torch.Tensor
    first_steps: torch.Tensor
    capacities: torch.Tensor

    def where(self, mask: torch.Tensor) -> "_Rows":
        return _Rows._make(column[mask] for column in self)

    def each(self) -> list[Row]:
        """The rows one by one."""
        return [Row._make(row) for row in torch.stack(tuple(self), 1).tolist()]


def _rows(batch: DecodeBatch, mask: torch.Tensor) -> _Rows:
    tables = {name: table.long() for name, table in batch.requests.tensors().items()}
    step = batch.positions.long() - batch.requests.prompt_lens
    index = torch.arange(step.shape[0], device=step.device)
    slots = batch.req_pool_indices.long()
    return _Rows(row=index, slots=slots, step=step, **tables).where(mask)


def _mixed(step: torch.Tensor, layer_id: int, heads: torch.Tensor) -> torch.Tensor:
    """Mixes step, layer and head to 32 bits: [E, H] int64, the same on every machine."""
    x = step[:, None] * 0x9E3779B1 + layer_id * 0x85EBCA77 + heads * 0xC2B2AE3D
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = x & 0xFFFFFFFF
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 16)
