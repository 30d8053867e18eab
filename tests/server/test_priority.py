"""Priority scheduling, limits of what runs and waits, cut prompts, chunks without a radix cache."""

import re
import threading
import time
from collections.abc import Iterator

import pytest
from safetensors import safe_open
from sglang.srt.sampling.custom_logit_processor import DisallowedTokensLogitsProcessor

import twins
from benchmarks.harness.server import LocalServer
from client import (
    EVICTING,
    FOREVER,
    assert_report,
    events,
    flush_cache,
    generate,
    paused,
    post,
    problem,
    request,
    token_ids,
)
from conftest import start_server
from reasoner import REASONER

BUDGET, TOKENS, POOL = 32, 800, 1000


@pytest.fixture(scope="module")
def priority_server() -> Iterator[LocalServer]:
    """Two requests at a time, the most urgent ones; one may wait; long prompts are cut."""
    flags = ("--kv-policy", "raas", "--kv-budget", str(BUDGET), "--max-total-tokens", str(POOL))
    schedule = ("--enable-priority-scheduling", "--priority-scheduling-preemption-threshold", "0")
    few = ("--max-running-requests", "2", "--max-queued-requests", "1")
    more = ("--allow-auto-truncate", "--decode-log-interval", "1", "--disable-radix-cache")
    more = (*more, "--enable-custom-logit-processor", "--chunked-prefill-size", "64")
    with start_server(*flags, *schedule, *few, *more) as running:
        yield running
        assert running.is_alive(), running.log_end()


def test_an_urgent_request_retracts_a_saturated_one(priority_server):
    """The retracted one comes to its end all the same, with its budget."""
    answers: dict[int, dict] = {}
    order: list[int] = []

    def ask(number: int, priority: int, tokens: int) -> None:
        prompt = problem(8, inputs=number).prompt
        extra = {"priority": priority, **FOREVER}
        answers[number] = generate(priority_server, prompt, "raas", BUDGET, tokens, **extra)
        order.append(number)

    patient = [threading.Thread(target=ask, args=(n, 0, TOKENS)) for n in (0, 1)]
    start_one_by_one(priority_server, patient)
    while "#running-req: 2" not in priority_server.log() or saturated(priority_server) < 2 * BUDGET:
        assert all(thread.is_alive() for thread in patient)
        time.sleep(0.05)
    ask(2, 5, 40)
    for thread in patient:
        thread.join()
    assert order[0] == 2
    retractions = [answers[n]["meta_info"]["num_retractions"] for n in (0, 1, 2)]
    assert sorted(retractions[:2]) == [0, 1]
    assert retractions[2] == 0
    for number, tokens in ((0, TOKENS), (1, TOKENS), (2, 40)):
        assert_report(answers[number], "raas", BUDGET)
        assert answers[number]["meta_info"]["completion_tokens"] == tokens
    running = [int(count) for count in re.findall(r"#running-req: (\d+)", priority_server.log())]
    assert max(running) == 2
    flush_cache(priority_server)
    assert priority_server.used_tokens() == 0


def start_one_by_one(server, threads) -> None:
    """Starts each when the one before it runs, since only one may wait."""
    for number, thread in enumerate(threads, start=1):
        thread.start()
        while server.running_and_waiting() != (number, 0):
            assert thread.is_alive()
            time.sleep(0.05)


def test_a_full_queue_ends_none_that_had_begun(priority_server):
    """Both are retracted, and wait where only one may."""

    def begin(number: int) -> None:
        prompt = problem(8, inputs=number).prompt
        extra = {"priority": number, **FOREVER}
        answers[number] = generate(priority_server, prompt, "raas", BUDGET, TOKENS, **extra)

    answers: dict[int, dict] = {}
    begun = [threading.Thread(target=begin, args=(number,)) for number in (1, 2)]
    start_one_by_one(priority_server, begun)
    with paused(priority_server):
        pass
    for thread in begun:
        thread.join()
    for answer in answers.values():
        assert_report(answer, "raas", BUDGET)
        assert answer["meta_info"]["completion_tokens"] == TOKENS
        assert answer["meta_info"]["num_retractions"] == 1


@pytest.mark.parametrize("policy", ["dense", *EVICTING])
def test_a_prompt_beyond_the_pool_is_cut_alike_for_every_policy(priority_server, policy):
    answer = generate(priority_server, [5] * (POOL + 500), policy, tokens=40, **FOREVER)
    assert_report(answer, policy, None if policy == "dense" else BUDGET)
    info = answer["meta_info"]
    assert info["prompt_tokens"] == POOL - 2 - BUDGET
    assert info["completion_tokens"] == (BUDGET if policy == "dense" else 40)


def test_one_of_two_equal_prompts_is_aborted(priority_server):
    twins.assert_the_other_is_spared(priority_server, BUDGET)


def test_embeddings_as_input_are_their_tokens(priority_server):
    ids = token_ids(priority_server, problem(8).prompt)
    with safe_open(REASONER / "model.safetensors", "pt") as weights:
        rows = weights.get_tensor("model.embed_tokens.weight")[ids].tolist()
    expected = generate(priority_server, ids, "raas", BUDGET, 100, **FOREVER)
    body = {**request([], "raas", BUDGET, 100, **FOREVER), "input_embeds": rows}
    del body["input_ids"]
    answer = post(priority_server, "/generate", body).json()
    assert answer["output_ids"] == expected["output_ids"]
    assert_report(answer, "raas", BUDGET)


def test_a_logit_processor_has_its_parameters_beside_ours(priority_server):
    banned = [5, 6, 7]
    custom = {"kv_policy": "raas", "kv_budget": BUDGET, "token_ids": banned}
    extra = {"custom_logit_processor": DisallowedTokensLogitsProcessor.to_str()}
    params = {**FOREVER["sampling_params"], "custom_params": custom}
    answer = generate(priority_server, [5] * 20, tokens=100, sampling_params=params, **extra)
    assert_report(answer, "raas", BUDGET)
    assert not set(banned) & set(answer["output_ids"])


def saturated(server) -> int:
    """Tokens that the running requests have given up, from the last log line."""
    found = re.findall(r"#evicted token: (\d+)", server.log())
    return int(found[-1]) if found else 0


@pytest.mark.parametrize("policy", EVICTING)
def test_until_the_first_eviction_the_text_is_the_dense_one(priority_server, policy):
    """And after it the same policy gives the same text again; in chunks, without a radix cache."""
    ids = token_ids(priority_server, problem(40).prompt)  # 255 tokens
    stream = events(priority_server, request(ids, policy, BUDGET, 100, **FOREVER))
    next(stream)  # it runs: two in a queue for one would be too many
    second = generate(priority_server, ids, policy, BUDGET, 100, **FOREVER)
    *_, first = stream
    for answer in (first, second):
        assert_report(answer, policy, BUDGET)
    dense = generate(priority_server, ids, "dense", tokens=100, **FOREVER)
    # The step that takes the last of these in overwrites a token, and gives the next one.
    until = BUDGET + 1
    assert first["output_ids"][:until] == dense["output_ids"][:until]
    assert first["output_ids"] == second["output_ids"]
    assert first["meta_info"]["evicted_tokens"] >= 100 - BUDGET - 1
