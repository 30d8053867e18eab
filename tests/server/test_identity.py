"""`dense_identity` and `batch_invariance` on the CPU: RaaS that need not evict changes nothing."""

import pytest

from client import (
    FOREVER,
    assert_chain_right,
    assert_report,
    assert_same_answer,
    generate,
    problem,
    together,
)

LINES = 18  # 238 generated tokens
OPTIONS = {"tokens": 600, "return_logprob": True}


@pytest.fixture(scope="module")
def plain(plain_server):
    """What SGLang answers without RaaS; it ends by itself."""
    answer = generate(plain_server, problem(LINES).prompt, **OPTIONS)
    assert answer["meta_info"]["finish_reason"]["type"] == "stop"
    return answer


@pytest.mark.parametrize(
    ("policy", "budget", "tokens"),
    [
        ("dense", None, 260),
        ("raas", 512, 260),  # the whole output fits, so nothing is tracked
        ("raas", 512, 600),  # tracked, stamped, stored by the eviction path, ends before L
        ("random", 512, 600),
        ("window", 512, 600),
    ],
)
def test_dense_identity(server, plain, policy, budget, tokens):
    asked = problem(LINES)
    ours = generate(server, asked.prompt, policy, budget, **{**OPTIONS, "tokens": tokens})
    assert_same_answer(ours, plain)
    assert_report(ours, policy, budget)
    assert_chain_right(asked, ours)
    assert "kv_policy" not in plain["meta_info"]


def test_a_budget_above_the_largest_is_one_that_holds_the_output(server, plain_server):
    """There is no room for it in the state, so nothing may be written there."""
    asked, neighbour = problem(LINES), problem(12)
    options = {"tokens": 530, **FOREVER}  # of --kv-max-budget 512

    def beside():
        return generate(server, neighbour.prompt, "h2o", 64, 180)

    alone, plain = beside(), generate(plain_server, asked.prompt, **options)
    policies = ("raas", "raas-paper", "h2o")
    calls = [
        lambda policy=policy: generate(server, asked.prompt, policy, 544, **options)
        for policy in policies
    ]
    *answers, seen = together([*calls, beside])
    for policy, answer in zip(policies, answers, strict=True):
        assert_report(answer, policy, 544)
        assert answer["output_ids"] == plain["output_ids"]
        assert answer["meta_info"]["evicted_tokens"] == 0
    assert seen["output_ids"] == alone["output_ids"]


def test_radix_cache_and_overlap_are_on(server):
    import requests

    info = requests.get(server.url + "/server_info", timeout=60).json()
    assert not info["disable_radix_cache"]
    assert not info["disable_overlap_schedule"]


def test_batch_invariance(server):
    """A request's evictions do not depend on its neighbours, nor theirs on it."""
    asked = [problem(12, inputs=index) for index in range(4)]  # 160 generated tokens
    choices = [("raas", 64), ("dense", None), ("window", 48), ("random", 128)]

    def run(index):
        return generate(server, asked[index].prompt, *choices[index], tokens=180)

    alone = [run(index) for index in range(4)]
    beside = together([lambda index=index: run(index) for index in range(4)] * 2)
    for index, answer in enumerate(beside):
        assert answer["text"] == alone[index % 4]["text"], choices[index % 4]
        assert_report(answer, *choices[index % 4])
    assert_chain_right(asked[1], alone[1])
