"""What a hierarchical cache must do whose pool on the device holds only a few prompts."""

import re
import threading
import time

import requests

from client import (
    FOREVER,
    assert_chain_right,
    assert_report,
    assert_same_answer,
    events,
    flush_cache,
    generate,
    post,
    problem,
    request,
    second_turns,
    together,
    token_ids,
)

POOL = 4096  # of the fixtures; the host has room for eight times as many
FLAGS = ("--enable-hierarchical-cache", "--hicache-ratio", "8", "--max-total-tokens", str(POOL))
WRITE_BACK = ("--hicache-write-policy", "write_back", "--hicache-mem-layout", "layer_first")
# The most urgent request runs, alone.
ONE_BY_ONE = ("--max-running-requests", "1", "--enable-priority-scheduling")
ONE_BY_ONE = (*ONE_BY_ONE, "--priority-scheduling-preemption-threshold", "0", "--enable-metrics")


def crowd_out(server) -> None:
    """Evicts all else from the device: twice the pool is prefilled, in words that nobody uses."""
    for word in range(1000, 1009):
        generate(server, [word] * (2 * POOL // 9), "dense", tokens=1)


def cached(answer: dict) -> tuple[int, int]:
    """Prompt tokens that the cache had on the device, and on the host."""
    details = answer["meta_info"]["cached_tokens_details"] or {"device": 0, "host": 0}
    assert details["device"] + details["host"] == answer["meta_info"]["cached_tokens"], details
    return details["device"], details["host"]


def assert_empty(server) -> None:
    flush_cache(server)
    assert server.used_tokens() == 0


def sent(server, lines: int, seed: int) -> list[int]:
    """A prompt, all but the last token of which the cache has.

    That one is always computed again. If the cache had it too, one over a prompt on the device
    would attend it as it was computed with the others, and not as it is computed alone.
    """
    ids = token_ids(server, problem(lines, seed=seed).prompt)
    generate(server, ids[:-1], "dense", tokens=1)
    return ids


def assert_the_same_from_the_host(server, ids: list[int], *choice, **extra) -> dict:
    """An answer over a prompt from the host is that over the same prompt on the device."""

    def ask() -> dict:
        return generate(server, ids, *choice, return_logprob=True, **extra)

    near = ask()
    device, host = cached(near)
    assert device > len(ids) - 17, "the prompt must be on the device"
    assert host == 0, "the prompt must be on the device alone"
    crowd_out(server)
    far = ask()
    assert cached(far) == (0, device), "all of the prompt must come from the host"
    assert_same_answer(far, near)
    return far


def assert_a_prompt_comes_back_as_it_went(server) -> None:
    """Twice, since what was loaded is evicted again."""
    ids = sent(server, 60, seed=21)
    for _ in range(2):
        assert_the_same_from_the_host(server, ids, "dense", tokens=60)
    assert_empty(server)


def assert_evicting_over_a_prompt_from_the_host(server, policy: str) -> None:
    """It overwrites none of the prompt, and what it gives up does not depend on where that was."""
    ids = sent(server, 60, seed=22)
    answer = assert_the_same_from_the_host(server, ids, policy, 32, tokens=200, **FOREVER)
    assert_report(answer, policy, 32)
    assert answer["meta_info"]["evicted_tokens"] > 160
    # What it ran over is still what the host has.
    assert_the_same_from_the_host(server, ids, "dense", tokens=60)


def assert_the_host_holds_nothing_that_was_overwritten(server, page_size: int) -> None:
    for ids, clean in second_turns(server, page_size):
        crowd_out(server)
        found = cached(generate(server, ids, "dense", tokens=1))
        assert found == (0, clean), len(ids)


def assert_many_load_and_evict_side_by_side(server) -> None:
    """Loads overlap with steps that overwrite, and nobody is retracted for memory."""
    asked = [problem(18, seed=index) for index in range(20)]
    choices = [("raas", 256), ("raas-paper", 32), ("window", 64), ("h2o", 32)]

    def ask(index: int) -> dict:
        return generate(server, prompts[index], *choices[index % 4], 300, **FOREVER)

    prompts = [sent(server, 18, seed=index) for index in range(20)]
    alone = [ask(index) for index in range(20)]
    for _ in range(2):
        crowd_out(server)
        answers = together([lambda index=index: ask(index) for index in range(20)])
        assert sum(cached(answer)[1] for answer in answers) > 0, "prompts must come from the host"
        compared = 0
        for index, (answer, quiet) in enumerate(zip(answers, alone, strict=True)):
            assert_report(answer, *choices[index % 4])
            assert answer["meta_info"]["num_retractions"] == 0, index
            # Where no room was left to load a prompt, other kernels computed it again.
            if sum(cached(answer)) == sum(cached(quiet)):
                compared += 1
                assert answer["output_ids"] == quiet["output_ids"], index
        assert compared > 10, [cached(answer) for answer in answers]
    crowd_out(server)
    calls = [lambda one=one: generate(server, one.prompt, "raas", 256, 300) for one in asked]
    for one, answer in zip(asked, together(calls), strict=True):
        assert_chain_right(one, answer)
    assert_empty(server)


def loaded_back(server) -> int:
    """Tokens that were loaded from the host so far."""
    text = requests.get(server.url + "/metrics", timeout=60).text
    values = re.findall(r"^sglang:load_back_tokens_total\{[^}]*\} (\S+)$", text, re.MULTILINE)
    return int(sum(map(float, values)))


def wait_for(server, state: tuple[int, int]) -> None:
    """Waits until so many requests run and wait."""
    deadline = time.monotonic() + 60
    while (found := server.running_and_waiting()) != state:
        assert time.monotonic() < deadline, f"{state} must run and wait, {found} do"
        time.sleep(0.02)


def assert_a_resumed_request_loads_its_prompt(server) -> None:
    """While it waits, an urgent request has its row, and another the room of its prompt."""
    flush_cache(server)
    asked, budget, tokens = problem(46), 288, 300
    answers: dict[str, dict] = {}
    threads: list[threading.Thread] = []

    def urgent(rid: str, *args, **extra) -> None:
        def ask() -> None:
            answers[rid] = generate(server, *args, rid=rid, priority=5, **extra)

        threads.append(threading.Thread(target=ask))
        threads[-1].start()

    last: dict = {}
    for event in events(server, request(asked.prompt, "raas", budget, tokens, priority=0)):
        last = event
        if not threads and event["meta_info"]["completion_tokens"] > 60:
            urgent("row", [1100] * 100, "raas", 64, 10000, **FOREVER)
            wait_for(server, (1, 1))
            urgent("room", [1101] * (POOL - 200), "dense", tokens=2)
            wait_for(server, (1, 2))
            before = loaded_back(server)
            post(server, "/abort_request", {"rid": "row"})
    for thread in threads:
        thread.join()
    assert_report(last, "raas", budget)
    info = last["meta_info"]
    assert info["num_retractions"] == 1
    assert info["completion_tokens"] == tokens
    assert answers["room"]["meta_info"]["prompt_tokens"] == POOL - 200
    flush_cache(server)  # once all loads have ended
    prompt = info["prompt_tokens"]
    assert loaded_back(server) - before == prompt, "all of its prompt must come from the host"
    assert asked.chain.startswith(last["text"].strip()), last["text"]
    assert server.used_tokens() == 0
