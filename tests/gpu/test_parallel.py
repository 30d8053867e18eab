"""Two GPUs: one model on both (TP 2), and a model on each (DP 2), against one GPU."""

import threading
from collections import defaultdict
from functools import partial

import numpy as np
import pytest
import requests

from client import (
    FOREVER,
    assert_chain_right,
    assert_report,
    flush_cache,
    generate,
    problem,
    together,
)
from cpu_run import TIE, departures, load_runs
from raas_sglang.trace import Received, listen, token_table

pytestmark = pytest.mark.gpu2

LINES, TOKENS = 46, 660  # 602 generated tokens
CHOICES = [("dense", None), ("raas", 1024), ("raas", 64), ("window", 64), ("random", 64)]
RUNS = {(run.policy, run.budget): run for run in load_runs()}


@pytest.fixture(scope="module", params=["tp_server", "dp_server"])
def parallel_server(request):
    return request.getfixturevalue(request.param)


def endpoints(server) -> list[str]:
    """Where each rank publishes its trace."""
    first = server.command[server.command.index("--kv-trace-endpoint") + 1]
    address, _, port = first.rpartition(":")
    ranks = 2 if "--tp-size" in server.command else 1
    return [f"{address}:{int(port) + rank}" for rank in range(ranks)]


def traced(server, calls) -> tuple[list[dict], dict]:
    """Runs calls while it listens; returns their answers and, by request, step and rank, events."""
    received: list[Received] = []
    answered = threading.Event()

    def subscribe() -> None:
        while not answered.is_set():
            received.extend(listen(endpoints(server), timeout_s=3))

    listener = threading.Thread(target=subscribe)
    listener.start()
    # Who subscribes is sent what is published afterwards.
    generate(server, problem(6).prompt, "raas", 16, tokens=100, **FOREVER)
    answers = together(calls)
    answered.set()
    listener.join()
    events: dict = defaultdict(dict)
    for _, batch in received:
        for event in batch.events:
            events[event.rid, event.step][batch.tp_rank] = event
    return answers, events


def ask_all(server, copies: int = 1) -> list[dict]:
    """Every choice on problems of its own, all at the same time."""
    calls = [
        lambda seed=seed, choice=choice: generate(
            server, problem(LINES, seed).prompt, *choice, TOKENS
        )
        for seed in range(copies)
        for choice in CHOICES
    ]
    return together(calls)


def test_answers(parallel_server):
    """Whatever keeps all of its chain must get it right, and everybody keeps to the budget."""
    for index, answer in enumerate(ask_all(parallel_server, 6)):
        policy, budget = CHOICES[index % len(CHOICES)]
        assert_report(answer, policy, budget)
        if budget in (None, 1024):
            assert_chain_right(problem(LINES, index // len(CHOICES)), answer)
        else:
            assert answer["meta_info"]["evicted_tokens"] > 0


@pytest.mark.parametrize("choice", [("dense", None), ("window", 256)])
def test_tokens_of_one_device(parallel_server, choice):
    """No eviction depends on a score, so the first token that differs was tied."""
    left = departures(parallel_server, RUNS[choice])
    assert all(margin < TIE for _, margin in left), left


def test_the_pools_are_whole(parallel_server):
    ask_all(parallel_server, 4)

    def leave() -> None:
        params = {"max_new_tokens": 12000, "temperature": 0, "ignore_eos": True}
        body = {"text": problem(6).prompt, "sampling_params": params, "stream": True}
        with requests.post(
            parallel_server.url + "/generate", json=body, stream=True, timeout=60
        ) as lines:
            next(lines.iter_lines())

    together([leave] * 8)
    flush_cache(parallel_server)
    assert parallel_server.used_tokens() == 0


def test_both_replicas_answer(dp_server):
    ranks = {answer["meta_info"]["dp_rank"] for answer in ask_all(dp_server, 4)}
    assert ranks == {0, 1}
    loads = requests.get(dp_server.url + "/v1/loads?include=all", timeout=60).json()["loads"]
    assert sorted(load["dp_rank"] for load in loads) == [0, 1]


def test_ranks_keep_one_account(tp_server):
    """At every step that both ranks published they agree on everything that heads do not own."""
    calls = [
        lambda policy=policy, tokens=tokens: generate(
            tp_server, problem(8).prompt, policy, 64, tokens, **FOREVER
        )
        for policy in ("raas", "window", "random")
        for tokens in (90, 400)
    ]
    answers, events = traced(tp_server, calls)
    compared = 0
    for ranks in events.values():
        if len(ranks) < 2:
            continue
        first, second = (ranks[rank] for rank in (0, 1))
        names = ("policy", "budget", "prompt_len", "logical_len", "resident_len", "shape")
        for name in names:
            assert getattr(first, name) == getattr(second, name), (first.rid, first.step, name)
        assert first.shape[1] == 1, "each rank has one of the two KV heads"
        compared += 1
    assert compared > 100, "some steps of both must have been published"
    for answer in answers:
        info = answer["meta_info"]
        last = max(step for rid, step in events if rid == info["id"])
        for event in events[info["id"], last].values():
            assert event.resident_len == info["prompt_tokens"] + 64 == info["resident_tokens"]


@pytest.mark.parametrize("policy", ["window", "random"])
def test_heads_give_up_the_pages_of_one_device(tp_server, traced_server, policy):
    """No choice depends on a score, so every head has the same births on two GPUs as on one."""
    prompt = problem(8).prompt
    births = []
    for server in (tp_server, traced_server):
        call = partial(generate, server, prompt, policy, 64, 400, **FOREVER)
        (answer,), events = traced(server, [call])
        births.append(
            {
                step: np.concatenate([token_table(ranks[r]).births for r in sorted(ranks)], axis=1)
                for (rid, step), ranks in events.items()
                if rid == answer["meta_info"]["id"] and len(ranks) == len(endpoints(server))
            }
        )
    two, one = births
    shared = two.keys() & one.keys()
    assert sum(step > 64 for step in shared) > 50, "some steps of both must have been published"
    for step in shared:
        assert two[step].shape[1] == 2
        assert (two[step] == one[step]).all(), step
