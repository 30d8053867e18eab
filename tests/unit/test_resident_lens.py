"""Lengths of a decode batch: logical where the text counts, resident where attention reads."""

from types import SimpleNamespace

import pytest
import torch

from raas_kernels import Policy
from raas_sglang.attention.in_place import InPlaceDecode
from raas_sglang.config import RaasConfig
from raas_sglang.life.options import RequestOptions
from raas_sglang.life.request import RequestState
from raas_sglang.pool import RaasTokenToKVPool
from raas_sglang.state import EvictionState, StateShape

PROMPTS, ROWS = (3, 5), [2, 3]


@pytest.fixture
def backend():
    """A saturated request of 30 tokens and one of 9, in a step that the scheduler began."""
    config = RaasConfig(kv_policy="raas", kv_budget=16)
    pool = RaasTokenToKVPool.__new__(RaasTokenToKVPool)
    pool.state = EvictionState(
        config, StateShape(1, 1, 1, 8, torch.float32, torch.float32), 4, "cpu"
    )
    options = RequestOptions(Policy.RAAS, 16, evicts=True)
    requests = [RequestState(options, prompt_len) for prompt_len in PROMPTS]
    pool.state.admit(ROWS, requests)
    pool.state.begin_step(torch.tensor(ROWS), torch.tensor([30, 9]), torch.tensor([19, 9]))
    made = InPlaceDecode()
    made.token_to_kv_pool = pool
    return made


def batch(*lens, rows=ROWS, **fields):
    lens = torch.tensor(lens)
    return SimpleNamespace(
        req_pool_indices=torch.tensor(rows),
        positions=lens - 1,
        seq_lens=lens,
        seq_lens_cpu=lens,
        seq_lens_sum=int(lens.sum()),
        **fields,
    )


def test_attention_reads_resident_slots_at_logical_positions(backend):
    given = batch(30, 9, rids=["a", "b"])
    seen = backend.with_resident_lens(given, backend.resident_lens(given))
    assert seen.seq_lens.tolist() == seen.seq_lens_cpu.tolist() == [19, 9]
    assert seen.seq_lens_sum == 28
    assert seen.positions is given.positions
    assert given.seq_lens.tolist() == given.seq_lens_cpu.tolist() == [30, 9]
    assert given.seq_lens_sum == 39


def test_padding_rows_of_a_graph_have_no_limit(backend):
    given = batch(30, 9, 1, 1, rows=[*ROWS, 0, 0])
    seen = backend.with_resident_lens(given, backend.resident_lens(given))
    assert seen.seq_lens.tolist() == seen.seq_lens_cpu.tolist() == [19, 9, 1, 1]


def test_a_made_up_batch_keeps_its_lengths(backend):
    """A warm-up or a capture, also after requests were served."""
    assert backend.resident_lens(batch(1, 1, 1, rids=None)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("lens", [(30, 10), (9, 30), (30,)])
def test_another_step_than_the_one_that_was_begun_is_refused(backend, lens):
    with pytest.raises(RuntimeError, match="must know the requests of each decode step"):
        backend.resident_lens(batch(*lens))
