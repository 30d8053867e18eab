"""`conservation`: however a request ends, the pool is whole afterwards."""

import pytest
import requests

from client import (
    FOREVER,
    TIMEOUT_S,
    flush_cache,
    generate,
    interrupted_events,
    post,
    problem,
    request,
    together,
)


def used_after(server, action) -> int:
    action()
    flush_cache(server)
    return server.used_tokens()


@pytest.mark.parametrize("budget", [16, 64])
def test_finished_requests_give_everything_back(server, budget):
    calls = [
        lambda index=index: generate(
            server, problem(6, seed=index).prompt, "raas", budget, 150, **FOREVER
        )
        for index in range(6)
    ]
    assert used_after(server, lambda: together(calls)) == 0


def test_aborted_requests_give_everything_back(server):
    def abort():
        assert post(server, "/abort_request", {"rid": "to-abort"}).status_code == 200

    def run():
        body = request(problem(6, seed=40).prompt, "raas", 16, 12000, rid="to-abort", **FOREVER)
        *_, event = interrupted_events(server, body, 33, abort)  # saturated
        assert event["meta_info"]["finish_reason"]["type"] == "abort"

    assert used_after(server, run) == 0


def test_clients_that_disconnect_give_everything_back(server):
    def leave(index):
        body = request(problem(6, seed=index).prompt, "raas", 32, 12000, stream=True, **FOREVER)
        with requests.post(
            server.url + "/generate", json=body, stream=True, timeout=TIMEOUT_S
        ) as lines:
            for count, _ in enumerate(lines.iter_lines()):
                if count > 60 + 20 * index:
                    return

    calls = [lambda index=index: leave(index) for index in range(5)]
    assert used_after(server, lambda: together(calls)) == 0


def test_the_server_is_still_right_afterwards(server):
    asked = problem(18)
    answer = generate(server, asked.prompt, "raas", 256, 300)
    assert answer["text"] == " " + asked.chain
