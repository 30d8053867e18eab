"""Tensors that the kernels cannot address are refused by name, and nothing is launched."""

import pytest
import torch

from made_up_rows import OPTIONS, SMALL, Rows
from raas_kernels import KeyCaches, ScoreScratch, StepBuffers


def test_tensors_that_the_kernels_cannot_take_are_refused():
    from raas_kernels.claim_slots import claim_slots
    from raas_kernels.score_tokens import score_tokens
    from raas_kernels.store_decode import store_decode

    rows = Rows(**SMALL)
    keys, values, buffers, step, scratch = rows.fresh()
    batch, key_caches = rows.batch(), KeyCaches.of(list(keys))
    k = torch.zeros(9, 2, 64)
    q = torch.zeros(9, 64, 4).transpose(1, 2)
    caches, layer, state = (keys[0], values[0]), step.layer(0), buffers.layer(0)
    with pytest.raises(ValueError, match=r"q must be \[B, heads, D\] with contiguous heads, got"):
        store_decode(q, k, k, *caches, layer, batch, state)
    q = q.contiguous()
    for name in ("targets", "places"):
        long = layer._replace(**{name: getattr(layer, name).long()})
        with pytest.raises(ValueError, match=rf"{name} must be contiguous torch.int32 \[any, 2\]"):
            store_decode(q, k, k, *caches, long, batch, state)
        few = step._replace(**{name: getattr(step, name)[:, :, :1]})
        with pytest.raises(ValueError, match=f"{name} must be contiguous torch.int32"):
            claim_slots(few, batch, buffers, OPTIONS)
    few = StepBuffers(*(tensor[:, :6].contiguous() for tensor in step))
    with pytest.raises(ValueError, match="must hold the batch's 9 rows, got 6"):
        claim_slots(few, batch, buffers, OPTIONS)
    with pytest.raises(ValueError, match="must hold the batch's 9 rows, got 6"):
        store_decode(q, k, k, *caches, few.layer(0), batch, state)
    half = state._replace(query_means=state.query_means.half())
    with pytest.raises(ValueError, match="query_means must be contiguous"):
        store_decode(q, k, k, *caches, layer, batch, half)
    with pytest.raises(ValueError, match="keys must be 2 caches with contiguous heads of 64"):
        score_tokens(scratch, KeyCaches.of([keys[0]]), step, batch, buffers, OPTIONS)
    for name in ("logits", "scores"):
        wrong = scratch._replace(**{name: getattr(scratch, name)[:, :2]})
        with pytest.raises(ValueError, match=f"{name} must be contiguous"):
            score_tokens(wrong, key_caches, step, batch, buffers, OPTIONS)
    none = ScoreScratch(*(tensor[:0] for tensor in scratch))
    with pytest.raises(ValueError, match=r"scratch must be for 9 rows and for some programs"):
        score_tokens(none, key_caches, step, batch, buffers, OPTIONS)
    half = step._replace(queries=step.queries.half())
    with pytest.raises(ValueError, match="queries must be contiguous"):
        score_tokens(scratch, key_caches, half, batch, buffers, OPTIONS)


def test_key_caches_that_kernels_cannot_read_are_refused():
    keys = torch.zeros(2, 33, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="must begin at multiples of 16 bytes"):
        KeyCaches.of([keys[0], keys[1]])
