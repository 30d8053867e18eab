"""Tensors that the kernels cannot address are refused by name, and nothing is launched."""

from dataclasses import replace

import pytest
import torch

from made_up_rows import OPTIONS, SMALL, Rows
from raas_kernels import KeyCaches
from raas_kernels.claim_slots import claim_slots
from raas_kernels.score_tokens import score_tokens
from raas_kernels.store_decode import store_decode


class Step:
    """A decode step of 9 rows, each op of which can be given other tensors."""

    def __init__(self):
        rows = Rows(**SMALL)
        self.keys, self.values, self.buffers, self.step, self.scratch = rows.fresh()
        self.batch, self.key_caches = rows.batch(), KeyCaches.of(list(self.keys))
        self.q, self.k = torch.zeros(9, 4, 64), torch.zeros(9, 2, 64)

    def claim(self, step=None, buffers=None):
        claim_slots(step or self.step, self.batch, buffers or self.buffers, OPTIONS)

    def store(self, q=None, k=None, step=None, buffers=None):
        q, k = self.q if q is None else q, self.k if k is None else k
        step, buffers = (step or self.step).layer(0), (buffers or self.buffers).layer(0)
        store_decode(q, k, self.k, self.keys[0], self.values[0], step, self.batch, buffers)

    def score(self, scratch=None, key_caches=None, step=None, buffers=None):
        score_tokens(
            scratch or self.scratch, key_caches or self.key_caches, step or self.step,
            self.batch, buffers or self.buffers, OPTIONS,
        )  # fmt: skip


@pytest.fixture
def ops():
    return Step()


def changed(record, change, *names):
    """The record with some of its tensors, or all, put through a change."""
    found = record.tensors()
    return replace(record, **{name: change(found[name]) for name in names or found})


@pytest.mark.parametrize("name", ["targets", "places"])
def test_step_buffers_of_another_type_or_shape(ops, name):
    for call in (ops.claim, ops.store, ops.score):
        with pytest.raises(ValueError, match=rf"{name} must be contiguous torch.int32 \["):
            call(step=changed(ops.step, torch.Tensor.long, name))
        with pytest.raises(ValueError, match=f"{name} must be contiguous torch.int32"):
            call(step=changed(ops.step, lambda tensor: tensor[:, :, :1], name))


def test_step_buffers_for_a_smaller_batch(ops):
    few = changed(ops.step, lambda tensor: tensor[:, :6].contiguous())
    for call in (ops.claim, ops.store):
        with pytest.raises(ValueError, match="StepBuffers must hold the batch's 9 rows, got 6"):
            call(step=few)
    with pytest.raises(ValueError, match="ScoreScratch must have M = 6 as the tensors beside it"):
        ops.score(step=few)


@pytest.mark.parametrize("name", ["births", "weights", "value_norms", "victims", "query_means"])
def test_eviction_state_of_another_type_or_shape(ops, name):
    for call in (ops.claim, ops.store, ops.score):
        with pytest.raises(ValueError, match=f"{name} must be contiguous"):
            call(buffers=changed(ops.buffers, torch.Tensor.double, name))
    with pytest.raises(ValueError, match=r"weights must be .*N = 48\], got .*47\]"):
        ops.claim(buffers=changed(ops.buffers, lambda tensor: tensor[..., :47], "weights"))


def test_step_buffers_and_state_of_other_heads(ops):
    one = changed(ops.step, lambda tensor: tensor[:, :, :1].contiguous(), "targets", "places")
    with pytest.raises(ValueError, match="EvictionBuffers must have H = 1 as the tensors beside"):
        ops.claim(step=one)


def test_queries_keys_and_values(ops):
    with pytest.raises(ValueError, match=r"q must be \[B, heads, D\] with contiguous heads, got"):
        ops.store(q=torch.zeros(9, 64, 4).transpose(1, 2))
    with pytest.raises(ValueError, match=r"k and v must be \[B, 2, 64\] and q \[B, 4, 64\], got"):
        ops.store(k=torch.zeros(9, 1, 64))
    half = changed(ops.step, torch.Tensor.half, "queries")
    with pytest.raises(ValueError, match=r"queries must be torch.float32 as q, got torch.float16"):
        ops.store(step=half)
    with pytest.raises(ValueError, match=r"queries must be torch.float32 as the keys"):
        ops.score(step=half)


def test_key_caches(ops):
    with pytest.raises(ValueError, match="keys must be 2 caches with contiguous heads of 64"):
        ops.score(key_caches=KeyCaches.of([ops.keys[0]]))
    keys = torch.zeros(2, 33, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="must begin at multiples of 16 bytes"):
        KeyCaches.of([keys[0], keys[1]])


@pytest.mark.parametrize("name", ["logits", "scores"])
def test_scratch(ops, name):
    with pytest.raises(ValueError, match="must be contiguous"):
        ops.score(scratch=changed(ops.scratch, lambda tensor: tensor[:, :2], name))
