"""Eviction from a KV cache of float8 by a real server; scales and kernels have their own tests."""

import pytest

from client import (
    assert_chain_right,
    assert_report,
    assert_same_answer,
    flush_cache,
    generate,
    problem,
    together,
)
from conftest import beside, start_server

LINES = 18  # 238 generated tokens
MOST = 208  # of which so many are kept
OPTIONS = {"tokens": 600, "return_logprob": True}


@pytest.fixture(scope="module")
def float8_server():
    flags = ("--kv-policy", "raas", "--kv-budget", "64", "--kv-max-budget", "512")
    more = ("--max-total-tokens", "20000", "--kv-cache-dtype", "fp8_e4m3")
    with start_server(*flags, *more, **beside("float8")) as running:
        yield running
        assert running.is_alive(), running.log_end()


def test_the_pool_is_float8(float8_server):
    assert "KV Cache is allocated. dtype: torch.float8_e4m3fn" in float8_server.log()


@pytest.fixture(scope="module")
def dense(float8_server):
    return generate(float8_server, problem(LINES).prompt, "dense", **OPTIONS)


@pytest.mark.parametrize("policy", ["raas", "window", "h2o"])
def test_dense_identity(float8_server, dense, policy):
    asked = problem(LINES)
    ours = generate(float8_server, asked.prompt, policy, 512, **OPTIONS)
    assert_same_answer(ours, dense)
    assert_chain_right(asked, ours)


def test_what_matters_is_kept_in_a_batch_of_all_policies(float8_server):
    """With `window` the question is how the text began, so it loses what it needs."""
    choices = ("raas", "raas-paper", "h2o", "window", "dense")
    asked = {choice: [problem(LINES, inputs=index) for index in range(2)] for choice in choices}
    calls = [
        lambda one=one, choice=choice: generate(
            float8_server, one.prompt, choice, None if choice == "dense" else MOST, tokens=300
        )
        for choice in choices
        for one in asked[choice]
    ]
    answers = iter(together(calls))
    right = {}
    for choice, problems in asked.items():
        of_choice = [next(answers) for _ in problems]
        for answer in of_choice:
            assert_report(answer, choice, None if choice == "dense" else MOST)
            assert choice == "dense" or answer["meta_info"]["evicted_tokens"] > 0
        pairs = zip(problems, of_choice, strict=True)
        right[choice] = sum(one.chain == answer["text"].strip() for one, answer in pairs)
    assert right == {"raas": 2, "raas-paper": 2, "h2o": 2, "window": 0, "dense": 2}
    flush_cache(float8_server)
    assert float8_server.used_tokens() == 0
