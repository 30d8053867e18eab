"""What a request that is admitted leaves in the tables that the kernels read."""

import pytest
import torch

from raas_kernels import Policy
from raas_sglang.config import RaasConfig
from raas_sglang.life.options import parse_options
from raas_sglang.life.request import RequestState
from raas_sglang.policies import POLICIES
from raas_sglang.state import EvictionState, StateShape

CONFIG = RaasConfig("raas", 32)
SHAPE = StateShape(1, 1, 1, 16, torch.float32, torch.float32)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("budget", [32, 64])
def test_a_request_that_gives_up_nothing_is_not_scored(policy, budget):
    """It has no room in the state if its budget is above --kv-max-budget."""
    options = parse_options({"kv_policy": policy, "kv_budget": budget}, CONFIG, 4096, budget, 5)
    state = EvictionState(CONFIG, SHAPE, 3, "cpu")
    state.admit([1], [RequestState(options, 5)])
    tables = state.rows(torch.tensor([1]))
    assert (tables.policies.item(), tables.periods.item()) == (Policy.DENSE, 0)


@pytest.mark.parametrize("policy", POLICIES)
def test_one_that_gives_up_tokens_is_scored_as_its_policy_asks(policy):
    options = parse_options({"kv_policy": policy}, CONFIG, 4096, 33, 5)
    state = EvictionState(CONFIG, SHAPE, 3, "cpu")
    state.admit([1], [RequestState(options, 5)])
    tables, kind = state.rows(torch.tensor([1])), POLICIES[policy].kind
    assert (tables.policies.item(), tables.periods.item()) == (kind, kind.period(32))


def test_a_resumed_request_tells_how_much_it_had_generated():
    """Of the steps before there are no queries, so its means begin anew."""
    options = parse_options({"kv_policy": "h2o"}, CONFIG, 4096, 900, 5)
    state, request = EvictionState(CONFIG, SHAPE, 3, "cpu"), RequestState(options, 5)
    for text_len, first in ((5, 0), (5 + 20, 20), (5 + 300, 300)):
        request.retract(text_len)
        request.prefilled(min(text_len, 5 + 32))
        state.admit([1], [request])
        tables = state.rows(torch.tensor([1]))
        assert (tables.first_steps.item(), tables.prompt_lens.item()) == (first, 5)
