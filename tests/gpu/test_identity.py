"""`dense_identity`, CUDA graphs and `batch_invariance`: what must not change a single token."""

import pytest
import requests

from client import (
    EVICTING,
    assert_chain_right,
    assert_report,
    assert_same_answer,
    flush_cache,
    generate,
    problem,
    together,
)

pytestmark = pytest.mark.gpu

LINES = 46  # 602 generated tokens
TOKENS = 660
CHOICES = [("raas", 64), ("raas-paper", 128), ("window", 64), ("random", 128), ("h2o", 64)]
CHOICES.append(("raas", 256))


def ask(server, index, policy, budget, **extra):
    return generate(server, problem(LINES, seed=index).prompt, policy, budget, TOKENS, **extra)


@pytest.mark.parametrize("seed", [50, 51])
@pytest.mark.parametrize(
    ("policy", "budget"),
    [("dense", None), *((policy, 1024) for policy in EVICTING)],
)
def test_dense_identity(pair, policy, budget, seed):
    """One request at a time from an empty tree: both servers run the same kernels on it."""
    server, plain_server = pair
    for each in pair:
        flush_cache(each)
    ours = ask(server, seed, policy, budget, return_logprob=True)
    plain = ask(plain_server, seed, None, None, return_logprob=True)
    assert_same_answer(ours, plain)
    assert_report(ours, policy, budget)
    assert_chain_right(problem(LINES, seed=seed), ours)
    assert "kv_policy" not in plain["meta_info"]


def settings(server) -> dict:
    return requests.get(server.url + "/server_info", timeout=60).json()


def graphs(server, kind: str) -> set[str]:
    """What the log says of the batches so far, of "Decode" or "Prefill": graph used, or not."""
    lines = [line for line in server.log().splitlines() if f"{kind} batch" in line]
    return {line.split("cuda graph: ")[1].split(",")[0] for line in lines}


def test_the_default_is_fast(server):
    together([lambda i=i: ask(server, i, "raas", 64) for i in range(4)])
    info = settings(server)
    assert not info["disable_radix_cache"]
    assert not info["disable_overlap_schedule"]
    assert info["decode_attention_backend"] == "flashinfer"
    assert graphs(server, "Decode") == {"True"}
    assert "True" in graphs(server, "Prefill")


def ask_mixed(server, count: int) -> list[dict]:
    """Problem i by choice i, both counted round, all at the same time."""
    rounds = [i % len(CHOICES) for i in range(count)]
    return together([lambda i=i: ask(server, i, *CHOICES[i]) for i in rounds])


@pytest.mark.parametrize("concurrent", [1, 12])
def test_graph_on_off(deterministic_server, eager_server, concurrent):
    captured = ask_mixed(deterministic_server, concurrent)
    eager = ask_mixed(eager_server, concurrent)
    for index, (ours, theirs) in enumerate(zip(captured, eager, strict=True)):
        assert ours["output_ids"] == theirs["output_ids"], index
        assert_report(ours, *CHOICES[index % len(CHOICES)])
        assert ours["meta_info"]["evicted_tokens"] > 0
    assert graphs(deterministic_server, "Decode") == {"True"}
    assert graphs(eager_server, "Decode") == {"False"}


@pytest.fixture(scope="module")
def alone(deterministic_server) -> list[dict]:
    """Each problem's answer with nobody beside it, its prompt in the tree as for the others."""
    for index in range(len(CHOICES)):
        generate(deterministic_server, problem(LINES, seed=index).prompt, "dense", tokens=1)
    return [ask(deterministic_server, i, *choice) for i, choice in enumerate(CHOICES)]


@pytest.mark.parametrize("concurrent", [40, 100])
def test_batch_invariance(deterministic_server, alone, concurrent):
    """A request's evictions do not depend on its neighbours, nor theirs on it."""
    answers = ask_mixed(deterministic_server, concurrent)
    for index, answer in enumerate(answers):
        assert answer["output_ids"] == alone[index % len(CHOICES)]["output_ids"], index
        assert_report(answer, *CHOICES[index % len(CHOICES)])


def test_dense_and_evicting_requests_leave_each_other_alone(deterministic_server, alone):
    """Dense requests come and go, so that rows of the batch and request slots change hands."""
    lengths = [4 + 6 * i for i in range(8)]
    calls = [
        lambda lines=lines: generate(
            deterministic_server, problem(lines).prompt, "dense", None, 660
        )
        for lines in lengths
    ]
    calls += [lambda i=i: ask(deterministic_server, i, *CHOICES[i]) for i in range(len(CHOICES))]
    answers = together(calls * 3)
    for index, answer in enumerate(answers):
        kind = index % len(calls)
        if kind < len(lengths):
            assert_chain_right(problem(lengths[kind]), answer)
        else:
            assert answer["output_ids"] == alone[kind - len(lengths)]["output_ids"]
