"""`budget_bound` and `tree_purity`, where they are easiest to get wrong: around L and P."""

import pytest

from client import (
    EVICTING,
    FOREVER,
    assert_report,
    flush_cache,
    generate,
    problem,
    together,
    token_ids,
)

LEAST = 16


@pytest.mark.parametrize("budget", [LEAST, 64])
@pytest.mark.parametrize("past", [-1, 0, 1, 2, 17])
def test_resident_length_stops_at_the_budget(server, budget, past):
    ids = token_ids(server, problem(6).prompt)[: 41 + past]
    tokens = budget + past
    answer = generate(server, ids, "raas", budget, tokens=tokens, **FOREVER)
    assert_report(answer, "raas", budget)
    info = answer["meta_info"]
    # An answer that ends for its length is known to: its last token is not computed.
    assert info["logical_tokens"] == len(ids) + tokens - 1
    assert info["resident_tokens"] == len(ids) + min(tokens - 1, budget)


@pytest.mark.parametrize("policy", EVICTING)
def test_every_policy_keeps_the_budget_in_one_batch(server, policy):
    lengths = (1, 2, 15, 16, 17, 33)
    prompts = [token_ids(server, problem(8, inputs=9).prompt)[:length] for length in lengths]
    calls = [
        lambda ids=ids: generate(server, ids, policy, 32, tokens=100, **FOREVER) for ids in prompts
    ]
    for ids, answer in zip(prompts, together(calls), strict=True):
        assert_report(answer, policy, 32)
        assert answer["meta_info"]["resident_tokens"] == len(ids) + 32
        assert answer["meta_info"]["evicted_tokens"] == 99 - 32


@pytest.mark.parametrize("past", [0, 1, 2, 40])
def test_tree_purity_around_the_first_overwrite(server, past):
    """Of L + 1 tokens the last is not computed; of one more, it overwrites the first."""
    budget = 48
    ids = [*token_ids(server, problem(7, inputs=past).prompt)[:50], 30 + past]
    answer = generate(server, ids, "raas", budget, tokens=budget + past, **FOREVER)
    again = [*ids, *answer["output_ids"], 5]
    cached = generate(server, again, "dense", tokens=1)["meta_info"]["cached_tokens"]
    if past < 2:
        assert cached == len(ids) + budget + past - 1, "nothing was overwritten: it has all"
    else:
        assert cached == len(ids), "the tree has the prompt and nothing else"


def test_tree_purity_of_an_answer_that_stops_with_a_step_in_flight(server):
    """It stops at token L + 1, which is seen when the step after it has overwritten the first."""
    found = 0
    for inputs in range(4):
        ids = token_ids(server, problem(7, inputs=inputs).prompt)[:50]
        text = generate(server, ids, "dense", tokens=49, **FOREVER)["output_ids"]
        for budget in (16, 32, 48):
            if text[budget] in text[:budget]:
                continue
            found += 1
            flush_cache(server)  # else the tree has that text already
            stop = {"sampling_params": {"stop_token_ids": [text[budget]]}}
            answer = generate(server, ids, "raas", budget, tokens=200, **stop)
            assert answer["output_ids"] == text[: budget + 1]
            assert answer["meta_info"]["evicted_tokens"] == 1
            again = [*ids, *answer["output_ids"], 5]
            cached = generate(server, again, "raas", tokens=1)["meta_info"]["cached_tokens"]
            assert cached == len(ids), "the tree has the prompt and nothing else"
    assert found


def test_prompt_untouched_by_saturated_neighbours(server):
    """A shared prefix reads back bit-identical: attention over it gives the same bits."""
    shared = problem(30, seed=21)
    probe = {"tokens": 40, "return_logprob": True}
    generate(server, shared.prompt, "dense", **probe)
    before = generate(server, shared.prompt, "dense", **probe)
    neighbours = [problem(30, seed=21, inputs=index) for index in range(100, 106)]
    calls = [
        lambda asked=asked: generate(server, asked.prompt, "raas", 32, tokens=120, **FOREVER)
        for asked in neighbours
    ]
    for answer in together(calls):
        assert answer["meta_info"]["cached_tokens"] > len(shared.program_text.split()) - 3
        assert answer["meta_info"]["evicted_tokens"] == 119 - 32
    after = generate(server, shared.prompt, "dense", **probe)
    assert after["meta_info"]["cached_tokens"] == before["meta_info"]["cached_tokens"]
    assert (
        after["meta_info"]["output_token_logprobs"] == before["meta_info"]["output_token_logprobs"]
    )


def test_requests_ask_for_their_own_budgets_in_one_batch(server):
    asked = problem(18)
    budgets = [16, 32, 64, 128, 256, 512]
    calls = [
        lambda budget=budget: generate(server, asked.prompt, "raas", budget, tokens=300)
        for budget in budgets
    ]
    answers = together(calls)
    for budget, answer in zip(budgets, answers, strict=True):
        assert_report(answer, "raas", budget)
    for answer in answers[-2:]:  # the first of them could have given tokens up
        assert answer["text"] == " " + asked.chain
