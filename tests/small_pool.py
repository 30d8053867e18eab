"""What a server must do whose pool of 144 tokens is smaller than what it is asked to generate."""

import threading
import time

from client import (
    FOREVER,
    assert_report,
    events,
    flush_cache,
    generate,
    post,
    problem,
    request,
    retracted_events,
    together,
    token_ids,
)
from raas_sglang.life.request import REPORT_FIELDS

POOL = 144  # of the fixtures
CHUNK = 32  # longer prompts are computed in pieces


def prompt(server, length=40, inputs=0):
    return token_ids(server, problem(8, inputs=inputs).prompt)[:length]


def assert_four_times_the_pool(small_server, server, length: int) -> None:
    """The text is that of a server with room for everything."""
    ids, tokens = prompt(small_server, length), 4 * POOL + 20
    for each in (small_server, server):
        flush_cache(each)
    answers = [
        generate(each, ids, "raas", 64, tokens, **FOREVER) for each in (small_server, server)
    ]
    for answer in answers:
        assert_report(answer, "raas", 64)
        assert answer["meta_info"]["completion_tokens"] == tokens
        assert answer["meta_info"]["resident_tokens"] == len(ids) + 64
    assert answers[0]["output_ids"] == answers[1]["output_ids"]


def assert_dense_neighbours_give_way(small_server) -> None:
    """Who does not fit waits, and only dense requests are retracted."""
    choices = [("raas", 32)] * 3 + [("dense", None)] * 2
    calls = [
        lambda index=index, choice=choice: generate(
            small_server, prompt(small_server, 20, index), *choice, 100, **FOREVER
        )
        for index, choice in enumerate(choices)
    ]
    for answer, (policy, budget) in zip(together(calls), choices, strict=True):
        assert_report(answer, policy, budget)
        assert answer["meta_info"]["completion_tokens"] == 100
        if policy != "dense":
            assert answer["meta_info"]["num_retractions"] == 0


def assert_retraction_beyond_the_pool(small_server, tokens: int) -> None:
    """The boundary stays, the last 64 tokens stay, and the answer comes as long as asked for."""
    ids = prompt(small_server)
    body = request(ids, "raas", 64, tokens, **FOREVER)
    *_, last = retracted_events(small_server, body, at=POOL + 21)
    assert_report(last, "raas", 64)
    info = last["meta_info"]
    assert info["num_retractions"] == 1
    assert (info["completion_tokens"], info["resident_tokens"]) == (tokens, len(ids) + 64)


def assert_refusal_of_what_can_never_fit(small_server) -> None:
    ids = prompt(small_server)
    for policy, budget, status in (("raas", 96, 200), ("raas", 112, 400), ("window", 112, 400)):
        response = post(small_server, "/generate", request(ids, policy, budget, 120, **FOREVER))
        assert response.status_code == status, response.text
    assert "must fit into the KV cache with a page to spare (142 tokens)" in response.text
    assert "prompt (40 tokens) and kept tokens (112" in response.text


def assert_refusals_come_before_the_answer(small_server) -> None:
    """With status 400 and their own reason on every route, streamed or not, for every policy."""
    chosen = ({"kv_policy": "dense"}, {"kv_policy": "raas", "kv_budget": 112})
    ids = {"dense": [5] * (POOL - 2), "raas": prompt(small_server)}
    for custom in chosen:
        asked = ids[custom["kv_policy"]]
        params = {"max_new_tokens": 120, "custom_params": custom}
        probabilities = {"return_logprob": True, "logprob_start_len": 30}
        generated = {"input_ids": asked, "sampling_params": params}
        completed = {"model": "m", "prompt": asked, "max_tokens": 120, "custom_params": custom}
        for route, body in (
            ("/generate", generated),
            ("/generate", {**generated, **probabilities}),
            ("/v1/completions", completed),
        ):
            for stream in (False, True):
                response = post(small_server, route, {**body, "stream": stream})
                assert response.status_code == 400, response.text
                assert "must fit into the KV cache" in response.text
                assert "output_ids" not in response.text


def assert_a_prompt_just_below_the_pool(small_server) -> None:
    """SGLang takes prompts of up to six tokens less than the pool."""
    answer = generate(small_server, [5] * (POOL - 7), "dense", tokens=120, **FOREVER)
    assert_report(answer, "dense", None)
    assert answer["meta_info"]["completion_tokens"] == 5


def assert_an_answer_without_tokens_has_its_report(small_server) -> None:
    ids = prompt(small_server)
    (streamed,) = events(small_server, request(ids, "raas", 64, 0))
    for answer in (generate(small_server, ids, "raas", 64, 0), streamed):
        assert_report(answer, "raas", 64)
        assert answer["meta_info"]["completion_tokens"] == 0


def assert_who_is_aborted_while_waiting_answers(small_server) -> None:
    """One that never ran has a report and the length of its prompt too."""
    ids, answers = prompt(small_server), []
    waiting = request(ids, "raas", 64, 100, rid="waiting", **FOREVER)
    thread = threading.Thread(
        target=lambda: answers.append(post(small_server, "/generate", waiting).json())
    )
    for event in events(small_server, request(ids, "raas", 64, 4000, rid="running", **FOREVER)):
        if event["meta_info"]["completion_tokens"] == 1:
            thread.start()
            while small_server.running_and_waiting() != (1, 1):
                time.sleep(0.05)
            post(small_server, "/abort_request", {"rid": "waiting"})
            thread.join()
            post(small_server, "/abort_request", {"rid": "running"})
    assert_report(event, "raas", 64)
    info = answers[0]["meta_info"]
    assert info["finish_reason"]["type"] == "abort"
    assert (info["prompt_tokens"], info["completion_tokens"]) == (len(ids), 0)
    assert [info[name] for name in REPORT_FIELDS] == ["raas", 64, 0, 0, 0]
