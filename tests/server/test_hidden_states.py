"""`return_hidden_states`: one for each token of the answer, evicted, and retracted on the way."""

import pytest
import torch
from safetensors import safe_open

from client import FOREVER, assert_report, problem, request, retracted_events, token_ids
from reasoner import REASONER

TOKENS = 100


@pytest.fixture(scope="module")
def embeddings() -> torch.Tensor:
    """[tokens, width]; the reasoner's output layer is its input layer."""
    with safe_open(REASONER / "model.safetensors", "pt") as weights:
        return weights.get_tensor("model.embed_tokens.weight").float()


def last_of(state: list) -> list[float]:
    """A prefill returns the states of all that it computed; the last one gives the token."""
    return state[-1] if isinstance(state[0], list) else state


def assert_sampled_from(states, tokens, embeddings) -> None:
    """Each token is the likeliest of its state, but for rounding to bfloat16."""
    logits = torch.tensor(states) @ embeddings.T
    chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    assert (logits.max(1).values - chosen).max() < 0.25


@pytest.mark.parametrize(("policy", "budget"), [("dense", None), ("raas", 32), ("window", 16)])
def test_each_token_has_the_state_that_it_was_sampled_from(
    retracting_server, embeddings, policy, budget
):
    ids = token_ids(retracting_server, problem(8).prompt)
    body = request(ids, policy, budget, TOKENS, return_hidden_states=True, **FOREVER)
    *_, event = retracted_events(retracting_server, body, at=(budget or 0) + 1)
    assert_report(event, policy, budget)
    info = event["meta_info"]
    assert info["num_retractions"] >= 1
    assert info["completion_tokens"] == TOKENS
    states = [last_of(state) for state in info["hidden_states"]]
    assert len(states) == TOKENS
    assert_sampled_from(states, event["output_ids"], embeddings)
