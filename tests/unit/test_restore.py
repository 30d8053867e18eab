"""The budget of a retracted request, laid out again, against a window kept from the start."""

import pytest
import torch

from raas_kernels import EvictionBuffers, Policy
from raas_kernels.layout import LONG_PERIOD
from raas_sglang.life.restore import budget_layout, next_victims, restore_state

EVICTING = [policy for policy in Policy if policy is not Policy.DENSE]


@pytest.mark.parametrize("budget", [16, 64])
@pytest.mark.parametrize("generated", [1, 15, 16, 17, 63, 64, 65, 100, 128, 1000])
def test_layout_is_what_the_window_policy_would_have_left(generated, budget):
    places = {token % budget: token for token in range(generated)}
    tokens = budget_layout(generated, budget)
    assert tokens.tolist() == [places[place] for place in range(len(places))]


@pytest.mark.parametrize("budget", [16, 48, 512])
@pytest.mark.parametrize("policy", EVICTING)
def test_the_next_victims_are_the_oldest_tokens(policy, budget):
    for generated in range(budget, 3 * budget):
        tokens = dict(enumerate(budget_layout(generated, budget).tolist()))
        victims = next_victims(policy, generated, budget)
        assert len(victims) == LONG_PERIOD
        period = max(1, policy.period(budget))
        for step in range(generated, -(-(generated + 1) // period) * period):
            if policy is Policy.RAAS_PAPER:
                place = victims[0] * 16 + step % 16
            else:
                place = victims[step % period]
            assert tokens[place] == step - budget, (generated, step)
            tokens[place] = step


@pytest.mark.parametrize("policy", EVICTING)
def test_the_state_of_a_request_is_written_and_others_stay(policy):
    generated, budget, layers, heads = 100, 64, 2, 3
    tokens = budget_layout(generated, budget)
    sizes = {"Y": layers, "R": 3, "H": heads, "Hq": heads, "D": 8, "N": budget + 16}
    buffers = EvictionBuffers.zeros({**sizes, "V": LONG_PERIOD}, "cpu", torch.float32)
    for tensor in buffers.tensors().values():
        tensor.fill_(-7)
    norms = torch.rand(layers, heads, budget)
    victims = next_victims(policy, generated, budget)
    restore_state(buffers, 1, policy, tokens, norms, victims)
    kept = (slice(None), 1, slice(None), slice(budget))
    stamps = tokens.float() if policy is Policy.RAAS_PAPER else torch.zeros(budget)
    assert buffers.births[kept].equal(tokens.int().expand(layers, heads, budget))
    assert buffers.weights[kept].equal(stamps.expand(layers, heads, budget))
    assert buffers.value_norms[kept].equal(norms)
    assert buffers.victims[:, 1].equal(torch.tensor(victims).int().expand(layers, heads, -1))
    for tensor in buffers.tensors().values():
        assert tensor[:, [0, 2]].eq(-7).all()
