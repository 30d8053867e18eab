"""What the tests ask a server."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import requests

from benchmarks.harness.streams import stream
from raas_sglang.policies import POLICIES
from reasoner.problem import Problem, grade, make_problem

TIMEOUT_S = 600
FOREVER = {"sampling_params": {"ignore_eos": True}}
EVICTING = tuple(name for name in POLICIES if name != "dense")


def problem(lines: int, seed: int = 3, inputs: int | None = None) -> Problem:
    """A held-out problem; equal seeds share the program and so a long prefix of the prompt."""
    return make_problem("milestone", lines, seed, seed if inputs is None else inputs)


def post(server, route: str, body) -> requests.Response:
    return requests.post(server.url + route, json=body, timeout=TIMEOUT_S)


def generate(server, prompt, policy=None, budget=None, tokens=64, **extra) -> dict:
    """One greedy completion. ``prompt`` is a text or a list of token ids; must succeed."""
    response = post(server, "/generate", request(prompt, policy, budget, tokens, **extra))
    assert response.status_code == 200, response.text
    return response.json()


def events(server, body: dict, route: str = "/generate"):
    """Yields the events of a streamed answer, which must begin with status 200."""
    return stream(server.url + route, body, TIMEOUT_S)


@contextmanager
def paused(server, mode: str = "retract"):
    """Retracts all that runs, or holds it in place, while the block runs."""
    assert post(server, "/pause_generation", {"mode": mode}).ok
    try:
        yield
    finally:
        assert post(server, "/continue_generation", {}).ok


def interrupted_events(server, body: dict, at: int, act):
    """Yields the events of a streamed answer; calls ``act`` once when it has so many tokens."""
    is_done = False
    for event in events(server, body):
        if event["meta_info"]["completion_tokens"] >= at and not is_done:
            is_done = True
            act()
        yield event


def retracted_events(server, body: dict, at: int):
    """Yields the events of a streamed answer, which is retracted once it has so many tokens."""

    def retract():
        with paused(server):
            pass

    return interrupted_events(server, body, at, retract)


def request(prompt, policy=None, budget=None, tokens=64, prompt_len=None, **extra) -> dict:
    custom = {"kv_policy": policy, "kv_budget": budget, "kv_prompt_len": prompt_len}
    chosen = {key: value for key, value in custom.items() if value is not None}
    params = {"temperature": 0, "max_new_tokens": tokens, **extra.pop("sampling_params", {})}
    if chosen:
        params["custom_params"] = chosen
    name = "text" if isinstance(prompt, str) else "input_ids"
    return {name: prompt, "sampling_params": params, **extra}


def assert_same_answer(ours: dict, other: dict, tokens: int | None = None) -> None:
    """Token for token and bit for bit, to the end or of the first so many tokens."""
    ids = [answer["output_ids"][:tokens] for answer in (ours, other)]
    assert ids[0] == ids[1], ids
    both = [answer["meta_info"]["output_token_logprobs"][:tokens] for answer in (ours, other)]
    assert both[0] == both[1], "bit for bit"


def together(calls) -> list:
    """Runs calls at the same time and returns their results in order."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def second_turns(server, page_size: int):
    """Yields what follows on first turns that end about their budget, and the length of it that
    the radix tree may hold: the last token is not computed, so with L + 1 nothing was overwritten.
    """
    budget = 48
    prompt = token_ids(server, problem(7).prompt)[:50]
    for past in (0, 1, 2, 40):
        ids = [*prompt, 30 + past]
        answer = generate(server, ids, "raas", budget, budget + past, **FOREVER)
        clean = len(ids) + (budget + past - 1 if past < 2 else 0)
        yield [*ids, *answer["output_ids"], 5], clean // page_size * page_size


def token_ids(server, text: str) -> list[int]:
    """The prompt's tokens, as the server's tokenizer sees them."""
    response = post(server, "/tokenize", {"prompt": text, "add_special_tokens": False})
    assert response.status_code == 200, response.text
    return response.json()["tokens"]


def flush_cache(server) -> None:
    """Empties the radix tree, which needs a server that has become idle."""
    for _ in range(60):
        if requests.post(server.url + "/flush_cache", timeout=TIMEOUT_S).status_code == 200:
            return
        time.sleep(0.5)
    raise AssertionError("the server did not become idle")


def assert_chain_right(asked: Problem, answer: dict) -> None:
    verdict = grade(asked, answer["text"])
    assert verdict.chain_right, (verdict, answer["meta_info"])


def assert_report(answer: dict, policy: str, budget: int | None) -> None:
    """What every response must say, and `budget_bound`."""
    info = answer["meta_info"]
    assert info["kv_policy"] == policy
    assert info["kv_budget"] == budget
    assert info["evicted_tokens"] == info["logical_tokens"] - info["resident_tokens"]
    assert info["logical_tokens"] >= info["prompt_tokens"] + info["completion_tokens"] - 1
    if budget is not None:
        assert info["resident_tokens"] <= info["prompt_tokens"] + budget, "budget_bound"
    else:
        assert info["evicted_tokens"] == 0
