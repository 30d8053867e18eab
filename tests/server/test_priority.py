"""Priority scheduling and `--max-running-requests`: who is more urgent takes a running place."""

import re
import threading
import time
from collections.abc import Iterator

import pytest

from client import assert_report, flush_cache, generate, problem
from conftest import start_server
from local_server import LocalServer

FOREVER = {"sampling_params": {"ignore_eos": True}}
BUDGET, TOKENS = 32, 400


@pytest.fixture(scope="module")
def priority_server() -> Iterator[LocalServer]:
    """Two requests at a time, the most urgent ones."""
    flags = ("--kv-policy", "raas", "--kv-budget", str(BUDGET), "--max-total-tokens", "2000")
    schedule = ("--enable-priority-scheduling", "--priority-scheduling-preemption-threshold", "0")
    few = ("--max-running-requests", "2", "--decode-log-interval", "1")
    with start_server(*flags, *schedule, *few) as running:
        yield running
        assert running.is_alive(), running.log_end()


def test_an_urgent_request_interrupts_a_saturated_one(priority_server):
    """The interrupted one comes to its end all the same, with its budget."""
    answers: dict[int, dict] = {}
    order: list[int] = []

    def ask(number: int, priority: int, tokens: int) -> None:
        prompt = problem(8, inputs=number).prompt
        extra = {"priority": priority, **FOREVER}
        answers[number] = generate(priority_server, prompt, "raas", BUDGET, tokens, **extra)
        order.append(number)

    patient = [threading.Thread(target=ask, args=(n, 0, TOKENS)) for n in (0, 1)]
    for thread in patient:
        thread.start()
    while "#running-req: 2" not in priority_server.log() or saturated(priority_server) < 2 * BUDGET:
        assert all(thread.is_alive() for thread in patient)
        time.sleep(0.05)
    ask(2, 5, 40)
    for thread in patient:
        thread.join()
    assert order[0] == 2
    interruptions = [answers[n]["meta_info"]["num_retractions"] for n in (0, 1, 2)]
    assert sorted(interruptions[:2]) == [0, 1]
    assert interruptions[2] == 0
    for number, tokens in ((0, TOKENS), (1, TOKENS), (2, 40)):
        assert_report(answers[number], "raas", BUDGET)
        assert answers[number]["meta_info"]["completion_tokens"] == tokens
    running = [int(count) for count in re.findall(r"#running-req: (\d+)", priority_server.log())]
    assert max(running) == 2
    flush_cache(priority_server)
    assert priority_server.used_tokens() == 0


def saturated(server) -> int:
    """Tokens that the running requests have given up, from the last log line."""
    found = re.findall(r"#evicted token: (\d+)", server.log())
    return int(found[-1]) if found else 0
