"""Page size 16 and the Triton kernels, interpreted, against page size 1 and the torch ops."""

import pytest

from client import (
    EVICTING,
    FOREVER,
    assert_report,
    generate,
    post,
    problem,
    request,
    together,
    token_ids,
)


def test_the_kernels_run(paged_server):
    assert paged_server.environment["TRITON_INTERPRET"] == "1"


@pytest.mark.parametrize("length", [1, 15, 16, 17, 40])
def test_budgets_hold_at_odd_prompt_lengths(paged_server, length):
    ids = token_ids(paged_server, problem(8).prompt)[:length]
    answer = generate(paged_server, ids, "raas", 16, 20, **FOREVER)
    assert_report(answer, "raas", 16)
    assert answer["meta_info"]["resident_tokens"] == length + 16


def test_a_budget_above_the_largest_is_one_that_holds_the_output(paged_server, server):
    answer = generate(paged_server, problem(6).prompt, "h2o", 144, 140, **FOREVER)
    dense = generate(server, problem(6).prompt, "dense", tokens=140, **FOREVER)
    assert_report(answer, "h2o", 144)
    assert answer["output_ids"] == dense["output_ids"]


def test_every_policy_writes_what_the_torch_ops_write(paged_server, server):
    asked = problem(6)
    policies = (*EVICTING, "dense")
    calls = [
        lambda policy=policy: generate(paged_server, asked.prompt, policy, 16, 28, **FOREVER)
        for policy in policies
    ]
    for policy, answer in zip(policies, together(calls), strict=True):
        torch_answer = generate(server, asked.prompt, policy, 16, 28, **FOREVER)
        assert answer["output_ids"] == torch_answer["output_ids"], policy
        assert_report(answer, policy, None if policy == "dense" else 16)
        assert policy == "dense" or answer["meta_info"]["evicted_tokens"] == 27 - 16


@pytest.mark.parametrize("past", [1, 2])
def test_tree_purity_with_pages(paged_server, past):
    budget, ids = 16, [*token_ids(paged_server, problem(7).prompt)[:40], 30 + past]
    answer = generate(paged_server, ids, "raas", budget, budget + past, **FOREVER)
    again = [*ids, *answer["output_ids"], 5]
    cached = generate(paged_server, again, "dense", tokens=1)["meta_info"]["cached_tokens"]
    kept = len(ids) + budget if past == 1 else len(ids)
    assert cached == kept // 16 * 16, "whole pages of what was never overwritten"


def test_a_dense_prompt_close_to_the_pool_halts_nobody(paged_server):
    """In whole pages it would leave none for its first token, and wait for ever."""
    response = post(paged_server, "/generate", request([5] * 7969, "dense", tokens=8))
    assert response.status_code == 400, response.text
    assert "prompt (7969 tokens)" in response.text
    assert "must fit into the KV cache with a page to spare (7968 tokens)" in response.text
    assert_report(generate(paged_server, [5] * 20, "dense", tokens=2), "dense", None)
