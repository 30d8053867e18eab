"""`budget_bound` and `tree_purity`, where they are easiest to get wrong: around L and P."""

import pytest

from client import EVICTING, assert_report, generate, problem, together, token_ids

LEAST = 16
FOREVER = {"sampling_params": {"ignore_eos": True}}


@pytest.mark.parametrize("budget", [LEAST, 64])
@pytest.mark.parametrize("past", [-1, 0, 1, 2, 17])
def test_resident_length_stops_at_the_budget(server, budget, past):
    ids = token_ids(server, problem(6).prompt)[: 41 + past]
    tokens = budget + past
    answer = generate(server, ids, "raas", budget, tokens=tokens, **FOREVER)
    assert_report(answer, "raas", budget)
    info = answer["meta_info"]
    # The overlap scheduler stores the last token too, one step ahead of the results.
    assert info["logical_tokens"] == len(ids) + tokens
    assert info["resident_tokens"] == len(ids) + min(tokens, budget)


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
        assert answer["meta_info"]["evicted_tokens"] == 100 - 32


@pytest.mark.parametrize("past", [0, 1, 2, 40])
def test_tree_purity_around_the_first_overwrite(server, past):
    """With L + 1 tokens the request ends while the first overwrite is in flight."""
    budget = 48
    ids = [*token_ids(server, problem(7, inputs=past).prompt)[:50], 30 + past]
    answer = generate(server, ids, "raas", budget, tokens=budget + past, **FOREVER)
    again = [*ids, *answer["output_ids"], 5]
    cached = generate(server, again, "dense", tokens=1)["meta_info"]["cached_tokens"]
    if past == 0:
        assert cached == len(ids) + budget, "nothing was overwritten, so the tree has it all"
    else:
        assert cached == len(ids), "the tree has the prompt and nothing else"


def test_prompt_untouched_by_saturated_neighbours(server):
    """A shared prefix reads back bit-identical: attention over it gives the same bits."""
    shared = problem(30, seed=21)
    probe = {"tokens": 40, "return_logprob": True}
    generate(server, shared.prompt, "dense", **probe)
    before = generate(server, shared.prompt, "dense", **probe)
    neighbours = [problem(30, seed=21, inputs=index) for index in range(100, 106)]
    calls = [
        lambda asked=asked: generate(server, asked.prompt, "raas", 32, tokens=200, **FOREVER)
        for asked in neighbours
    ]
    for answer in together(calls):
        assert answer["meta_info"]["cached_tokens"] > len(shared.program_text.split()) - 3
        assert answer["meta_info"]["evicted_tokens"] == 168
    after = generate(server, shared.prompt, "dense", **probe)
    assert after["meta_info"]["cached_tokens"] == before["meta_info"]["cached_tokens"]
    assert (
        after["meta_info"]["output_token_logprobs"] == before["meta_info"]["output_token_logprobs"]
    )


def test_requests_ask_for_their_own_budgets_in_one_batch(server):
    asked = problem(18)
    budgets = [16, 32, 64, 128, 256, 512]
    calls = [
        lambda budget=budget: generate(server, asked.prompt, "raas", budget, tokens=600)
        for budget in budgets
    ]
    answers = together(calls)
    for budget, answer in zip(budgets, answers, strict=True):
        assert_report(answer, "raas", budget)
    assert answers[-1]["text"] == " " + asked.chain
