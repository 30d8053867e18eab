"""How many requests there is eviction state for where the user did not say."""

import pytest
import torch

from raas_sglang.config import RaasConfig
from raas_sglang.request_slots import request_slots, reserve_slots
from raas_sglang.state import EvictionState, StateShape

SHAPE = StateShape(28, 4, 28, 128, dtype=torch.bfloat16, query_dtype=torch.bfloat16)
GIB = 2**30


def test_a_token_is_its_keys_and_values_in_all_layers():
    assert SHAPE.token_bytes == 2 * 28 * 4 * 128 * 2


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
