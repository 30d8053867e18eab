"""Retraction and chunked prefill: the boundary P does not move."""

import json
import re

import pytest

import twins
from client import (
    FOREVER,
    assert_chain_right,
    assert_report,
    generate,
    problem,
    together,
    token_ids,
)


def test_retracted_requests_keep_their_budgets_and_their_answers(retracting_server):
    asked = [problem(18, inputs=index) for index in range(2)]
    choices = [("raas", 256), ("dense", None), ("raas", 64), ("window", 64), ("h2o", 32)]
    choices.append(("raas-paper", 32))
    calls = [
        lambda one=one, choice=choice: generate(retracting_server, one.prompt, *choice, tokens=300)
        for one in asked
        for choice in choices
    ]
    answers = together(calls)
    for answer, choice in zip(answers, choices * 2, strict=True):
        assert_report(answer, *choice)
    assert sum(answer["meta_info"]["num_retractions"] for answer in answers) > 3
    for index, one in enumerate(asked):
        assert_chain_right(one, answers[index * len(choices)])  # 256 tokens lose 0 of 238
        assert_chain_right(one, answers[index * len(choices) + 1])


def test_a_retracted_window_is_the_window_it_was(retracting_server, server):
    """The last L tokens survive a retraction, so the window policy cannot tell."""
    asked = problem(18)
    quiet = generate(server, asked.prompt, "window", 64, 150)

    def run():
        return generate(retracting_server, asked.prompt, "window", 64, 150)

    answers = together([run] * 4)
    assert any(answer["meta_info"]["num_retractions"] for answer in answers)
    for answer in answers:
        assert answer["output_ids"][:60] == quiet["output_ids"][:60]
        assert_report(answer, "window", 64)


def test_prompts_longer_than_a_chunk(retracting_server):
    asked = problem(40)  # 255 prompt tokens, chunks of 64
    calls = [lambda: generate(retracting_server, asked.prompt, "raas", 64, 200, **FOREVER)] * 3
    for answer in together(calls):
        assert_report(answer, "raas", 64)
        assert answer["meta_info"]["resident_tokens"] == answer["meta_info"]["prompt_tokens"] + 64


def test_one_of_two_equal_prompts_in_chunks_is_aborted(retracting_server):
    twins.assert_the_other_is_spared(retracting_server, budget=32)


@pytest.mark.parametrize("start", [0, 255, -1])
def test_log_probabilities_of_a_retracted_request(retracting_server, start):
    """One for each token that was asked for, evicted and computed again or not."""
    asked = token_ids(retracting_server, problem(40).prompt)
    assert len(asked) == 255
    extra = {"return_logprob": True, "logprob_start_len": start, **FOREVER}
    calls = [lambda: generate(retracting_server, asked, "raas", 64, 150, **extra)] * 4
    answers = together(calls)
    assert any(answer["meta_info"]["num_retractions"] for answer in answers)
    for answer in answers:
        info = answer["meta_info"]
        expected = 255 - start if start >= 0 else 0
        assert [entry[1] for entry in info["input_token_logprobs"]] == asked[255 - expected :]
        assert [entry[1] for entry in info["output_token_logprobs"]] == answer["output_ids"]
        assert len(answer["output_ids"]) == 150
        assert_report(answer, "raas", 64)


@pytest.mark.parametrize("kind", ["regex", "json_schema"])
def test_a_grammar_outlives_a_retraction(retracting_server, kind):
    pattern = r"( v[0-9]+ =){60}"
    numbers = {"type": "array", "items": {"enum": [1, 22]}, "minItems": 40, "maxItems": 40}
    grammar = pattern if kind == "regex" else json.dumps(numbers)
    extra = {"sampling_params": {kind: grammar}}
    calls = [lambda: generate(retracting_server, problem(8).prompt, "raas", 32, 400, **extra)] * 4
    answers = together(calls)
    assert any(answer["meta_info"]["num_retractions"] for answer in answers)
    for answer in answers:
        if kind == "regex":
            assert re.fullmatch(pattern, answer["text"]), answer["text"]
        else:
            found = json.loads(answer["text"])
            assert len(found) == 40
            assert set(found) <= {1, 22}
        assert answer["meta_info"]["evicted_tokens"] > 0
        assert_report(answer, "raas", 32)
