"""What a trainer does to a server between and during rollouts, with every kind of request."""

import threading
import time
from functools import partial

import pytest

from client import (
    FOREVER,
    assert_report,
    events,
    flush_cache,
    generate,
    interrupted_events,
    paused,
    post,
    problem,
    request,
    together,
    token_ids,
)
from reasoner import REASONER

BUDGET, TOKENS = 32, 120
LONG = 220  # for three pauses on the way
UPDATE = {"model_path": str(REASONER), "flush_cache": False}
CHOICES = [("dense", None), ("raas", BUDGET), ("window", BUDGET)]


def streamed(server, ids, policy, budget) -> dict:
    """The last event of a streamed answer."""
    return list(events(server, request(ids, policy, budget, LONG, **FOREVER)))[-1]


def sampled(server, ids) -> list[dict]:
    """Three answers to one prompt."""
    body = request(ids, "raas", BUDGET, LONG, sampling_params={"n": 3, "ignore_eos": True})
    return post(server, "/generate", body).json()


def update_during(server, ids, at: list[int]) -> None:
    """Pauses by retraction, updates and continues whenever an answer has so many tokens."""
    for event in events(server, request(ids, "raas", BUDGET, LONG, **FOREVER)):
        if at and event["meta_info"]["completion_tokens"] >= at[0]:
            del at[0]
            with paused(server):
                assert post(server, "/update_weights_from_disk", UPDATE).ok


def test_three_updates_in_pauses_by_retraction(server):
    """All of it goes on: each has its tokens, its budget and its three retractions."""
    ids = token_ids(server, problem(8).prompt)
    logprobs = {"return_logprob": True, "logprob_start_len": 0, **FOREVER}
    calls = [partial(generate, server, ids, *choice, LONG, **FOREVER) for choice in CHOICES]
    calls += [partial(generate, server, ids, *choice, LONG, **logprobs) for choice in CHOICES]
    calls += [partial(streamed, server, ids, *choice) for choice in CHOICES]
    answers: list = []
    thread = threading.Thread(
        target=lambda: answers.extend(together([*calls, partial(sampled, server, ids)]))
    )
    thread.start()
    while server.running_and_waiting() != (len(calls) + 3, 0):
        assert thread.is_alive()
        time.sleep(0.02)
    update_during(server, ids, [20, 60, 100])
    thread.join()
    samples = answers.pop()
    for answer, choice in zip([*answers, *samples], [*CHOICES * 3, *[CHOICES[1]] * 3], strict=True):
        assert_report(answer, *choice)
        info = answer["meta_info"]
        assert (info["completion_tokens"], info["num_retractions"]) == (LONG, 3)
        assert info["resident_tokens"] == len(ids) + (choice[1] or LONG - 1)
    for answer in answers[3:6]:
        info = answer["meta_info"]
        assert [entry[1] for entry in info["input_token_logprobs"]] == ids
        assert [entry[1] for entry in info["output_token_logprobs"]] == answer["output_ids"]
    flush_cache(server)
    assert server.used_tokens() == 0


def test_an_update_in_a_pause_in_place_changes_no_token(server):
    ids = token_ids(server, problem(8).prompt)
    quiet = generate(server, ids, "raas", BUDGET, TOKENS, **FOREVER)

    def update():
        with paused(server, "in_place"):
            assert post(server, "/update_weights_from_disk", UPDATE).ok

    body = request(ids, "raas", BUDGET, TOKENS, **FOREVER)
    *_, event = interrupted_events(server, body, 2 * BUDGET + 1, update)
    assert event["output_ids"] == quiet["output_ids"]
    assert_report(event, "raas", BUDGET)


@pytest.mark.parametrize("mode", ["retract", "in_place"])
def test_who_leaves_and_who_is_aborted_in_a_pause_gives_everything_back(server, mode):
    ids = token_ids(server, problem(8).prompt)
    body = request(ids, "raas", BUDGET, 12000, **FOREVER)
    leaving, staying = events(server, body), events(server, body)
    for stream in (leaving, staying):
        while next(stream)["meta_info"]["evicted_tokens"] == 0:
            pass
    with paused(server, mode):
        leaving.close()
        post(server, "/abort_request", {"abort_all": True})
    *_, last = staying
    assert last["meta_info"]["finish_reason"]["type"] == "abort"
    assert_report(last, "raas", BUDGET)
    flush_cache(server)
    assert server.used_tokens() == 0


@pytest.mark.parametrize("aborts", [False, True])
def test_a_new_weight_version(server, aborts):
    ids = token_ids(server, problem(8).prompt)
    version = {"new_version": "second", "abort_all_requests": aborts}
    is_sent = False
    for event in events(server, request(ids, "raas", BUDGET, TOKENS, **FOREVER)):
        if event["meta_info"]["evicted_tokens"] and not is_sent:
            is_sent = True
            assert post(server, "/update_weight_version", version).ok
    info = event["meta_info"]
    assert info["finish_reason"]["type"] == ("abort" if aborts else "length")
    # SGLang sets the version while an aborted answer is on its way: it has either.
    assert info["weight_version"] in (["default", "second"] if aborts else ["second"])
    assert_report(event, "raas", BUDGET)
    assert post(server, "/update_weight_version", {"new_version": "default"}).ok
