"""The budget of a retracted request, laid out again, against a window kept from the start."""

from types import SimpleNamespace

import pytest
import torch

from raas_kernels import EvictionBuffers, Policy
from raas_kernels.layout import LONG_PERIOD
from raas_sglang.config import RaasConfig
from raas_sglang.life.options import RequestOptions
from raas_sglang.life.request import RequestState
from raas_sglang.life.restore import budget_layout, next_victims, restore_state
from raas_sglang.pool import RaasTokenToKVPool
from raas_sglang.state import StateShape

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


def test_what_is_moved_was_prefilled(monkeypatch):
    """The scheduler may be ahead of a prefill: SGLang does not always let it wait for all of it."""
    prompt_len, budget, text_len = 3, 16, 30
    pool = RaasTokenToKVPool(32, 1, torch.float32, 1, 8, 1, "cpu", False, enable_alt_stream=False)
    rows = SimpleNamespace(req_to_token=torch.arange(32).repeat(2, 1))
    shape = StateShape(1, 1, 1, 8, torch.float32)
    pool.attach(RaasConfig("raas", budget), rows, shape, 0, torch.cpu.Stream())
    request = RequestState(RequestOptions(Policy.RAAS, budget, evicts=True), prompt_len)
    request.retract(text_len)
    request.prefilled(prompt_len + budget)

    def prefill_ends(stream):
        assert stream is pool.forward_stream
        first = text_len - budget
        positions = [*range(prompt_len), *range(first, text_len)]
        for cache in (pool.k_buffer[0], pool.v_buffer[0]):
            cache[: len(positions)] = torch.tensor(positions).float()[:, None, None]

    scheduler_stream = SimpleNamespace(wait_stream=prefill_ends)
    monkeypatch.setattr(torch.cpu, "current_stream", lambda: scheduler_stream)
    pool.resume(1, request)
    kept = budget_layout(text_len - prompt_len, budget) + prompt_len
    moved = pool.k_buffer[0][prompt_len : prompt_len + budget, 0, 0]
    assert moved.equal(kept.float())
    assert pool.state.buffers.value_norms[0, 1, 0, :budget].allclose(kept * 8**0.5)
