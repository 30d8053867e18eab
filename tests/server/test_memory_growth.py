"""A thousand short requests, answered, streamed or aborted, leave nothing of ours behind."""

import random
from collections import Counter
from functools import partial

import requests

from client import (
    EVICTING,
    TIMEOUT_S,
    assert_report,
    events,
    flush_cache,
    generate,
    post,
    together,
)

POLICIES = ("dense", *EVICTING)
ROUNDS, AT_ONCE, STREAMED, ABORTED = 10, 60, 30, 10
BUDGET = 16
TOKENS = (1, 2, BUDGET + 2, 3)  # of the requests of a round; one round in four gives tokens up
FEW = 8  # that the last steps may still hold; a leak by request or by round would be more


def census(server) -> Counter[str]:
    """What RaaS keeps in the scheduler and in the server's process, by class and container."""
    told = requests.get(server.url + "/server_info", timeout=TIMEOUT_S).json()
    (state,) = told["internal_states"]
    return Counter(state["census"]) + Counter(state["census of the server"])


def batch(draw: random.Random, count: int, tokens: int) -> dict:
    """A batch of prompts and policies of their own."""
    policies = [draw.choice(POLICIES) for _ in range(count)]
    params = {"max_new_tokens": tokens, "ignore_eos": True}
    return {
        "input_ids": [[draw.randrange(5, 1000) for _ in range(5)] for _ in policies],
        "sampling_params": [
            {**params, "custom_params": {"kv_policy": policy, "kv_budget": BUDGET}}
            for policy in policies
        ],
    }


def answered(server, draw: random.Random, tokens: int) -> int:
    """Answers of a batch that comes as a whole."""
    body = batch(draw, AT_ONCE, tokens)
    answers = post(server, "/generate", body).json()
    for answer, params in zip(answers, body["sampling_params"], strict=True):
        policy = params["custom_params"]["kv_policy"]
        assert_report(answer, policy, None if policy == "dense" else BUDGET)
        assert answer["meta_info"]["completion_tokens"] == tokens
    return len(answers)


def streamed(server, draw: random.Random, tokens: int) -> int:
    """Answers of a batch that streams."""
    infos = [event["meta_info"] for event in events(server, batch(draw, STREAMED, tokens))]
    return sum(info["finish_reason"] is not None for info in infos)


def aborted(server, draw: random.Random, rid: str) -> int:
    """Requests that are aborted while some of them run and some wait."""
    rids = [f"{rid}-{index}" for index in range(ABORTED)]
    is_aborted, reasons = False, []
    for event in events(server, {**batch(draw, ABORTED, 4000), "rid": rids}):
        if not is_aborted:
            is_aborted = True
            together([partial(post, server, "/abort_request", {"rid": each}) for each in rids])
        reasons.append(event["meta_info"]["finish_reason"])
    assert {reason["type"] for reason in reasons if reason} == {"abort"}
    return sum(reason is not None for reason in reasons)


def run(server, name: str, rounds: int) -> int:
    """Number of requests that came to an end."""
    ended = 0
    for number in range(rounds):
        draws = [random.Random(f"{name} {number} {kind}") for kind in range(3)]
        tokens = TOKENS[number % len(TOKENS)]
        calls = [
            partial(answered, server, draws[0], tokens),
            partial(streamed, server, draws[1], tokens),
            partial(aborted, server, draws[2], f"{name}-{number}"),
        ]
        ended += sum(together(calls))
    flush_cache(server)
    assert server.used_tokens() == 0
    generate(server, [5] * 20, tokens=2)
    return ended


def test_nothing_grows(server):
    each = AT_ONCE + STREAMED + ABORTED
    assert run(server, "first", 1) == each
    before = census(server)
    assert run(server, "then", ROUNDS) == ROUNDS * each == 1000
    after = census(server)
    assert after["Req"] >= 1, "they are counted"
    # The streams that ended last may be held until others come: those of some rounds, never of all.
    few = {"Exchange.reports": ROUNDS // 2 * (STREAMED + ABORTED)}
    grown = {n: (before[n], now) for n, now in after.items() if now >= before[n] + few.get(n, FEW)}
    assert grown == {}
