"""Rollouts that are paused, aborted and sent again: what comes back, and how they go on."""

import threading
import time

from client import assert_report, events, paused, post, problem, request, token_ids

FOREVER = {"sampling_params": {"ignore_eos": True}}
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
    is_aborted = False
    for event in events(server, request(ids, "raas", BUDGET, TOKENS, **FOREVER)):
        if event["meta_info"]["completion_tokens"] > 2 * BUDGET and not is_aborted:
            is_aborted = True
            with paused(server):
                post(server, "/abort_request", {"abort_all": True})
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
