"""Requests that no server should accept, and clients that leave: what comes back, and to whom."""

import json
import resource
import socket
import struct
import time
from functools import partial
from typing import NamedTuple
from urllib.parse import urlsplit

import requests

from client import (
    FOREVER,
    TIMEOUT_S,
    assert_report,
    flush_cache,
    generate,
    problem,
    request,
    together,
)

TEXT = {"text": "solve"}


def _params(**params) -> dict:
    return {**TEXT, "sampling_params": params}


def _custom(**custom) -> dict:
    return _params(custom_params=custom)


class Bad(NamedTuple):
    """One request that must be refused.

    Attributes:
        name: What is wrong with it.
        body: Its JSON body, or raw bytes.
        route: Where it is sent.
        headers: Further headers.
        method: HTTP method.
    """

    name: str
    body: object
    route: str = "/generate"
    headers: dict[str, str] = {}  # noqa: RUF012
    method: str = "POST"


BAD = [
    Bad("half a body", b'{"text": "solve", "sampl'),
    Bad("no JSON", b"\xff\xfe\x00 solve"),
    Bad("an empty body", b""),
    Bad("a list", [1, 2]),
    Bad("a word", "solve"),
    Bad("null", None),
    Bad("nothing to do", {}),
    Bad("a number for the text", {"text": 5}),
    Bad("a text for the token ids", {"input_ids": "solve"}),
    Bad("embeddings in JSON", {**TEXT, "positional_embed_overrides": {"positions": [0]}}),
    Bad("a word for a place in a session", {**TEXT, "session_params": {"offset": "x"}}),
    Bad("a session of an unknown kind", {**TEXT, "session_params": {"size": 5}}),
    Bad("short embeddings", {"input_embeds": [[0.5] * 3]}),
    Bad("no token ids", {"input_ids": []}),
    Bad("no token ids beside some", {"input_ids": [[], [5, 6]]}),
    Bad("an empty text", {"text": ""}),
    Bad("token ids beyond the vocabulary", {"input_ids": [5, 10**6]}),
    Bad("negative token ids", {"input_ids": [5, -3]}),
    Bad("a word among token ids", {"input_ids": [5, "v3"]}),
    Bad("half a token id", {"input_ids": [5, 5.5]}),
    Bad("a text for the parameters", {**TEXT, "sampling_params": "hot"}),
    Bad("a list of parameters for one text", {**TEXT, "sampling_params": [{"max_new_tokens": 4}]}),
    Bad("an unknown parameter", _params(no_such_parameter=1)),
    Bad("a word for a length", _params(max_new_tokens="many")),
    Bad("half a token", _params(max_new_tokens=2.5)),
    Bad("an absurd length", _params(max_new_tokens=10**30)),
    Bad("a word for a temperature", _params(temperature="hot")),
    Bad("a negative length", _params(max_new_tokens=-1)),
    Bad("a negative temperature", _params(temperature=-1.0)),
    Bad("top_p above 1", _params(top_p=2.0)),
    Bad("half an expression to stop at", _params(stop_regex=["("])),
    Bad("a token to stop at that there is not", _params(min_new_tokens=2, stop_token_ids=[10**6])),
    Bad("a negative token to stop at", _params(min_new_tokens=2, stop_token_ids=[-5])),
    Bad(
        "more likely tokens than there are",
        {**TEXT, "return_logprob": True, "top_logprobs_num": 10**6},
    ),
    Bad("logprobs before the input", {**TEXT, "return_logprob": True, "logprob_start_len": -5}),
    Bad("fewer likely tokens than none", {**TEXT, "top_logprobs_num": -1}),
    Bad("a policy of another type", _custom(kv_policy=["raas"])),
    Bad("a policy nobody knows", _custom(kv_policy="lru" * 1000)),
    Bad("a budget of another type", _custom(kv_budget=64.5)),
    Bad("a budget that is true", _custom(kv_budget=True)),
    Bad("a budget of no whole page", _custom(kv_budget=17)),
    Bad("an absurd budget", _custom(kv_budget=10**30)),
    Bad("a negative budget", _custom(kv_budget=-(10**30))),
    Bad("parameters of another type", _params(custom_params=[["kv_policy", "raas"]])),
    Bad("a prompt above the context", {"input_ids": [5] * 20000}),
    Bad("a body of megabytes", {"input_ids": [5] * 2_000_000}),
    Bad("a header of 200 kB", TEXT, headers={"X-Long": "x" * 200_000}),
    Bad("another type of content", b"solve", headers={"Content-Type": "text/plain"}),
    Bad("another method", TEXT, method="DELETE"),
    Bad("another route", TEXT, route="/generates"),
    Bad("messages of another type", {"model": "m", "messages": 5}, "/v1/chat/completions"),
    Bad("no messages", {"model": "m"}, "/v1/chat/completions"),
    Bad("no prompt", {"model": "m"}, "/v1/completions"),
    Bad(
        "a budget of another type",
        {"model": "m", "prompt": "solve", "custom_params": {"kv_budget": "64"}},
        "/v1/completions",
    ),
]


def assert_nobody_is_disturbed(server, lines: int, disconnects: int) -> None:
    """Serves the same requests in quiet, then among everything that this module can do."""
    choices = [("dense", None), ("raas", 64), ("raas", 512), ("window", 64), ("random", 64)]

    def ask(index: int) -> tuple[str, list[int]]:
        asked = problem(lines, seed=30 + index)
        tokens = asked.generated_tokens + 20
        answer = generate(server, asked.prompt, *choices[index], tokens)
        assert_report(answer, *choices[index])
        return answer["text"], answer["output_ids"]

    def all_bad() -> list[tuple[str, str, int]]:
        return [(bad.name, bad.route, send(server, bad)) for bad in BAD]

    for index in range(len(choices)):
        generate(server, problem(lines, seed=30 + index).prompt, "dense", tokens=1)
    quiet = [ask(index) for index in range(len(choices))]
    *loud, statuses, _ = together(
        [partial(ask, index) for index in range(len(choices))] * 2
        + [all_bad, partial(leave_at_once, server, disconnects, held_s=2.0)]
    )
    accepted = [seen for seen in statuses if not 400 <= seen[-1] < 500]
    assert not accepted, f"each must be answered with its own 4xx, got {accepted}"
    for index, answer in enumerate(loud):
        assert answer == quiet[index % len(choices)], choices[index % len(choices)]
    flush_cache(server)
    assert server.used_tokens() == 0


def send(server, bad: Bad) -> int:
    """Sends it and returns the status."""
    data = bad.body if isinstance(bad.body, bytes) else json.dumps(bad.body).encode()
    headers = {"Content-Type": "application/json", **bad.headers}
    # A server may close before it has read all, and what it says then may break off.
    with requests.request(
        bad.method,
        server.url + bad.route,
        data=data,
        headers=headers,
        timeout=TIMEOUT_S,
        stream=True,
    ) as response:
        return response.status_code


def leave_at_once(server, count: int, held_s: float) -> None:
    """Opens so many connections at the same time and resets them all.

    Most ask for a long stream, the others stop in the middle of their body.
    """
    address = urlsplit(server.url)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    connections = []
    for index in range(count):
        policy, budget = (("raas", 32), ("dense", None), ("window", 16))[index % 3]
        prompt = f"program {index % 40}"
        body = json.dumps(request(prompt, policy, budget, 4000, stream=True, **FOREVER)).encode()
        head = (
            f"POST /generate HTTP/1.1\r\nHost: {address.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        sent = head + (body if index % 5 else body[: len(body) // 2])
        connection = socket.create_connection((address.hostname, address.port), timeout=TIMEOUT_S)
        # Without a linger a close sends a reset, as a client that dies does.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(sent)
        connections.append(connection)
    time.sleep(held_s)
    for connection in connections:
        connection.close()
