"""How many requests there is eviction state for where the user did not say."""

from types import SimpleNamespace

import pytest
import torch

from raas_patches import kv_cache_configurator
from raas_sglang.config import RaasConfig
from raas_sglang.request_slots import request_slots, reserve_slots
from raas_sglang.state import EvictionState, StateShape

SHAPE = StateShape(28, 4, 28, 128, dtype=torch.bfloat16, query_dtype=torch.bfloat16)
FLOAT8 = SHAPE._replace(dtype=torch.float8_e4m3fn)
GIB = 2**30


def test_a_token_is_its_keys_and_values_in_all_layers():
    assert SHAPE.token_bytes == 2 * 28 * 4 * 128 * 2


def test_a_token_of_a_quantised_cache_is_half_of_that_and_its_request_costs_the_same():
    assert FLOAT8.token_bytes == SHAPE.token_bytes / 2
    config = RaasConfig(kv_policy="raas", kv_budget=64, kv_max_budget=4096)
    sizes = [EvictionState.bytes_per_slot(config, shape) for shape in (SHAPE, FLOAT8)]
    assert sizes[0] == sizes[1]
    scratch = [EvictionState.scratch_bytes(config, shape, "cpu") for shape in (SHAPE, FLOAT8)]
    assert scratch[0] == scratch[1]


def test_more_requests_hold_a_full_budget_in_a_quantised_cache():
    config = RaasConfig(kv_policy="raas", kv_budget=64, kv_max_budget=4096)
    slots, quantised = (request_slots(config, shape, 50 * GIB) for shape in (SHAPE, FLOAT8))
    full = EvictionState.bytes_per_slot(config, FLOAT8) + 4096 * FLOAT8.token_bytes
    assert (quantised + 1) * full <= 50 * GIB < (quantised + 2) * full
    assert quantised > 1.7 * slots


@pytest.mark.parametrize("budget", [256, 1024, 4096])
def test_as_many_requests_may_run_as_hold_a_full_budget(budget):
    config = RaasConfig(kv_policy="raas", kv_budget=64, kv_max_budget=budget)
    slots = request_slots(config, SHAPE, 50 * GIB)
    full = EvictionState.bytes_per_slot(config, SHAPE) + budget * SHAPE.token_bytes
    # One more row of state is SGLang's padding.
    assert (slots + 1) * full <= 50 * GIB < (slots + 2) * full


def test_state_takes_little_where_eviction_is_the_exception():
    config = RaasConfig(kv_policy="dense", kv_max_budget=1024)
    slots = request_slots(config, SHAPE, 50 * GIB)
    slot_bytes = EvictionState.bytes_per_slot(config, SHAPE)
    assert 0.0199 < (slots + 1) * slot_bytes / (50 * GIB) <= 0.02


@pytest.mark.parametrize("budget", [16, 32, 64])
def test_the_state_of_small_budgets_takes_half_of_the_memory_at_most(budget):
    wide = SHAPE._replace(query_heads=16 * SHAPE.heads)
    config = RaasConfig(kv_policy="raas", kv_budget=budget)
    for gib in (1, 4, 10):
        slots = reserve_slots(config, wide, gib * GIB, None)
        assert slots.state_bytes <= gib * GIB / 2


def test_no_more_than_sglang_runs_and_at_least_one():
    config = RaasConfig(kv_policy="raas", kv_budget=64)
    assert request_slots(config, SHAPE, 5000 * GIB) == 4095
    assert request_slots(config, SHAPE, 1000) == 1


def test_what_was_asked_for_is_sized_for_or_refused():
    config = RaasConfig(kv_policy="raas", kv_budget=64)
    slot_bytes = EvictionState.bytes_per_slot(config, SHAPE)
    assert reserve_slots(config, SHAPE, 50 * GIB, 100) == (100, 101 * slot_bytes)
    assert reserve_slots(config, SHAPE, 50 * GIB, None)[0] == request_slots(config, SHAPE, 50 * GIB)
    with pytest.raises(ValueError, match="at most half of the memory for the KV cache"):
        reserve_slots(config, SHAPE, 101 * slot_bytes, 100)


@pytest.mark.parametrize("asked", [None, 100, 10_000])
def test_no_state_is_for_requests_that_linear_attention_has_none_for(asked):
    config = RaasConfig(kv_policy="raas", kv_budget=64)
    slot_bytes = EvictionState.bytes_per_slot(config, SHAPE)
    assert reserve_slots(config, SHAPE, 50 * GIB, asked, most=40) == (40, 41 * slot_bytes)


def test_a_model_without_keys_and_values_is_refused(monkeypatch):
    """Before its pool is sized by them, as of a Mamba."""
    monkeypatch.setattr(
        kv_cache_configurator, "get_parallel", lambda: SimpleNamespace(attn_tp_size=1)
    )
    one = SimpleNamespace(
        layer_info=SimpleNamespace(num_effective_layers=4),
        mambaish_config=SimpleNamespace(full_attention_layer_ids=[]),
        model=object(),
    )
    with pytest.raises(RuntimeError, match=r"a model with keys and values, got object without any"):
        kv_cache_configurator._shape(one)
