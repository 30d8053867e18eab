"""Rollouts that are paused, aborted and sent again: what comes back, and how they go on."""

import threading
import time

import pytest

from client import (
    EVICTING,
    FOREVER,
    assert_report,
    generate,
    interrupted_events,
    paused,
    post,
    problem,
    request,
    retracted_events,
    token_ids,
)

BUDGET, TOKENS = 64, 4000


def test_who_is_aborted_in_the_queue_answers_with_all_that_it_has(server):
    """Its tokens, their log-probabilities and its report, on every route, as if it had run."""
    ids = token_ids(server, problem(8).prompt)
    chat = {
        "model": "reasoner",
        "messages": [{"role": "user", "content": problem(8).prompt}],
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "custom_params": {"kv_policy": "raas", "kv_budget": BUDGET},
    }
    plain = request(ids, "raas", BUDGET, TOKENS, return_logprob=True, **FOREVER)
    answers = {}

    def ask(route, body):
        answers[route] = post(server, route, body).json()

    threads = [
        threading.Thread(target=ask, args=arguments)
        for arguments in (("/generate", plain), ("/v1/chat/completions", chat))
    ]
    for thread in threads:
        thread.start()
    while server.running_and_waiting() != (2, 0):
        assert all(thread.is_alive() for thread in threads)
        time.sleep(0.05)

    def abort():
        with paused(server):
            post(server, "/abort_request", {"abort_all": True})

    body = request(ids, "raas", BUDGET, TOKENS, **FOREVER)
    *_, event = interrupted_events(server, body, 2 * BUDGET + 1, abort)
    for thread in threads:
        thread.join()
    for answer in (event, answers["/generate"]):
        assert_report(answer, "raas", BUDGET)
        info = answer["meta_info"]
        assert info["finish_reason"]["type"] == "abort"
        assert info["prompt_tokens"] == len(ids)
        assert info["resident_tokens"] == len(ids) + BUDGET
        assert len(answer["output_ids"]) == info["completion_tokens"]
    info = answers["/generate"]["meta_info"]
    assert info["completion_tokens"] >= event["meta_info"]["completion_tokens"], "it began before"
    assert len(info["output_token_logprobs"]) == info["completion_tokens"]
    body = answers["/v1/chat/completions"]
    (report,) = body["metadata"]["kv"]
    assert (report["kv_policy"], report["kv_budget"]) == ("raas", BUDGET)
    assert report["resident_tokens"] == body["usage"]["prompt_tokens"] + BUDGET


def retracted_once(server, body, at):
    """The end of an answer that was retracted past ``at`` tokens, and how many it had then.

    A late reader gets several tokens at once, also some before and some after, which are not told
    apart; then it is asked again.
    """
    for attempt in range(5):
        rid = f"{body['rid']}-{attempt}"
        before, after, is_aborted = 0, 0, False
        for event in retracted_events(server, {**body, "rid": rid}, at):
            info = event["meta_info"]
            if info["num_retractions"]:
                after = after or info["completion_tokens"]
            else:
                before = info["completion_tokens"]
            if info["completion_tokens"] >= before + 100 and not is_aborted:
                is_aborted = True
                post(server, "/abort_request", {"rid": rid})
        assert info["num_retractions"] == 1
        if after == before + 1:
            return event, before
    raise AssertionError("no reader was in time")


@pytest.mark.parametrize(
    ("policy", "at"),
    [("raas", 20), ("raas", BUDGET), *((policy, 150) for policy in ("dense", *EVICTING))],
)
def test_sent_again_it_goes_on_as_if_it_had_been_retracted(server, policy, at):
    """Below the budget, at it and past it: token for token, within the same bound."""
    ids = token_ids(server, problem(8).prompt)
    body = request(ids, policy, BUDGET, TOKENS, rid=f"retracted-{policy}-{at}", **FOREVER)
    event, before = retracted_once(server, body, at)
    text = event["output_ids"]
    tokens = len(text) - before
    again = [*ids, *text[:before]]
    answer = generate(server, again, policy, BUDGET, tokens, prompt_len=len(ids), **FOREVER)
    assert answer["output_ids"] == text[before:]
    assert_report(answer, policy, None if policy == "dense" else BUDGET)
    assert answer["meta_info"]["logical_tokens"] == len(ids) + len(text) - 1
    if policy != "dense":
        assert answer["meta_info"]["resident_tokens"] == len(ids) + BUDGET


def test_rounds_of_an_answer_that_outgrows_the_pool(small_server, server):
    """Prompt 40, budget 64, five rounds of 60 tokens; the pool holds 144."""
    ids = token_ids(server, problem(8).prompt)[:40]
    texts = []
    for each in (small_server, server):
        text: list[int] = []
        for _ in range(5):
            answer = generate(
                each, [*ids, *text], "window", BUDGET, 60, prompt_len=len(ids), **FOREVER
            )
            text += answer["output_ids"]
            info = answer["meta_info"]
            assert info["prompt_tokens"] + 60 == len(ids) + len(text)
            assert info["logical_tokens"] == len(ids) + len(text) - 1
            assert info["resident_tokens"] == len(ids) + min(len(text) - 1, BUDGET)
        texts.append(text)
    assert texts[0] == texts[1]
    whole = post(small_server, "/generate", request([*ids, *text], "window", BUDGET, 60))
    assert whole.status_code == 400
    assert "must fit into the KV cache" in whole.text


@pytest.mark.parametrize("prompt_len", [0, -1, 21, "5", 5.0, True, None])
def test_a_bad_prompt_length_is_a_400(server, prompt_len):
    for route, body in (
        ("/generate", {"input_ids": [5] * 20, "sampling_params": {}}),
        ("/v1/completions", {"model": "reasoner", "prompt": [5] * 20}),
    ):
        body.get("sampling_params", body)["custom_params"] = {"kv_prompt_len": prompt_len}
        response = post(server, route, body)
        assert response.status_code == 400, response.text
        assert "kv_prompt_len must be a number of tokens from 1 to" in response.text


def test_a_prompt_length_beside_what_needs_every_token_is_a_400(server):
    session = {"session_params": {"id": "one"}}
    probabilities = {"return_logprob": True, "logprob_start_len": 0}
    for extra, name in ((session, "session_params"), (probabilities, "logprob_start_len")):
        response = post(server, "/generate", request([5] * 20, prompt_len=4, **extra))
        assert response.status_code == 400, response.text
        assert f"kv_prompt_len must be sent without {name}" in response.text


def test_log_probabilities_of_what_is_new(server):
    ids = token_ids(server, problem(8).prompt)
    first = generate(server, ids, "raas", BUDGET, 100, **FOREVER)
    again = [*ids, *first["output_ids"]]
    answer = generate(
        server, again, "raas", BUDGET, 30, prompt_len=len(ids), return_logprob=True, **FOREVER
    )
    entries = answer["meta_info"]["output_token_logprobs"]
    assert [entry[1] for entry in entries] == answer["output_ids"]
