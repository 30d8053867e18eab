"""What a server must do whose pool of 144 tokens is smaller than what it is asked to generate."""

import json
import threading

import requests

from client import (
    TIMEOUT_S,
    assert_report,
    flush_cache,
    generate,
    post,
    problem,
    request,
    together,
    token_ids,
)

POOL = 144  # of the fixtures
CHUNK = 32  # longer prompts are computed in pieces
FOREVER = {"sampling_params": {"ignore_eos": True}}


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
    """Who does not fit waits, and only dense requests are interrupted."""
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


def assert_interruption_beyond_the_pool(small_server, tokens: int) -> None:
    """The boundary stays, the last 64 tokens stay, and the answer comes as long as asked for."""
    ids = prompt(small_server)
    body = request(ids, "raas", 64, tokens, stream=True, **FOREVER)
    url, last = small_server.url + "/generate", {}
    with requests.post(url, json=body, stream=True, timeout=TIMEOUT_S) as lines:
        for line in filter(lambda line: line.startswith(b"data: {"), lines.iter_lines()):
            before, last = last, json.loads(line[6:])
            count = last["meta_info"]["completion_tokens"]
            if count > POOL + 20 >= before.get("meta_info", {}).get("completion_tokens", 0):
                assert post(small_server, "/pause_generation", {"mode": "retract"}).ok
                resumed = threading.Timer(
                    0.5, lambda: post(small_server, "/continue_generation", {})
                )
                resumed.start()
    resumed.join()
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
