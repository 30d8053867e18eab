"""Every HTTP route that generates: a choice is honoured or refused, and the answer reports."""

import json
from functools import partial

import pytest
import requests

from client import TIMEOUT_S, generate, post, together
from raas_sglang.life.request import REPORT_FIELDS
from reasoner import REASONER

TEXT, TOKENS = "solve", 60
MODEL = {"model": str(REASONER)}  # `/v1/responses` serves no other name
CHAT = {**MODEL, "messages": [{"role": "user", "content": TEXT}]}
NATIVE = {"text": TEXT, "sampling_params": {"max_new_tokens": TOKENS, "ignore_eos": True}}
# How each route is told what to generate.
BODIES = {
    "/generate": NATIVE,
    "/vertex_generate": {
        "instances": [{"text": TEXT}],
        "parameters": {"sampling_params": NATIVE["sampling_params"]},
    },
    "/v1/completions": {**MODEL, "prompt": TEXT, "max_tokens": TOKENS, "ignore_eos": True},
    "/v1/chat/completions": {**CHAT, "max_tokens": TOKENS, "ignore_eos": True},
    "/invocations": {**CHAT, "max_tokens": TOKENS, "ignore_eos": True},
    "/v1/responses": {**MODEL, "input": TEXT, "max_output_tokens": TOKENS},
    "/v1/messages": {**CHAT, "max_tokens": TOKENS},
    "/api/generate": {**MODEL, "prompt": TEXT, "options": {"num_predict": TOKENS}},
    "/api/chat": {**CHAT, "options": {"num_predict": TOKENS}},
}
SCORING = ["/v1/score", "/v1/decisions", "/v1/systemone", "/v1/rerank"]
STREAMED = [route for route in BODIES if route != "/vertex_generate"]
PLACES = {"/generate": ("sampling_params",), "/vertex_generate": ("parameters", "sampling_params")}
CHOICE, CHOSEN = {"kv_policy": "window", "kv_budget": 16}, ("window", 16)


def with_custom_params(route, custom_params, **extra):
    """The route's body with the parameters where they belong."""
    body = json.loads(json.dumps({**BODIES[route], **extra}))
    holder = body
    for name in PLACES.get(route, ()):
        holder = holder[name]
    holder["custom_params"] = custom_params
    return body


def reports(answer: dict) -> list[dict]:
    """The report of each choice, wherever the route has it."""
    if "predictions" in answer:
        return [item["meta_info"] for item in answer["predictions"]]
    if "meta_info" in answer:
        return [answer["meta_info"]]
    found = answer["metadata"]["kv"]
    return json.loads(found) if isinstance(found, str) else found


def assert_chosen(found, chosen=CHOSEN, choices=1):
    assert len(found) == choices
    for report in found:
        assert set(REPORT_FIELDS) <= set(report)
        assert (report["kv_policy"], report["kv_budget"]) == chosen
        assert report["evicted_tokens"] == report["logical_tokens"] - report["resident_tokens"]


def streamed(server, route, body) -> list[dict]:
    """The objects of a streamed answer."""
    objects = []
    body = {**body, "stream": True}
    with requests.post(server.url + route, json=body, stream=True, timeout=TIMEOUT_S) as answer:
        assert answer.status_code == 200, answer.text
        for line in answer.iter_lines():
            text = line.removeprefix(b"data: ")
            if text.startswith(b"{"):
                objects.append(json.loads(text))
    return objects


@pytest.mark.parametrize("route", BODIES)
def test_a_choice_is_honoured_and_reported(server, route):
    answer = post(server, route, with_custom_params(route, CHOICE, stream=False))
    assert answer.status_code == 200, answer.text
    assert_chosen(reports(answer.json()))


@pytest.mark.parametrize("route", BODIES)
def test_silence_is_answered_by_the_servers_policy(server, route):
    answer = post(server, route, {**BODIES[route], "stream": False})
    assert_chosen(reports(answer.json()), ("raas", 64))


@pytest.mark.parametrize("route", STREAMED)
def test_a_streamed_answer_reports_when_it_ends(server, route):
    objects = streamed(server, route, with_custom_params(route, CHOICE))
    if route == "/v1/responses":
        ends = ("response.completed", "response.incomplete")
        objects = [o["response"] for o in objects if o["type"] in ends]
    found = [o for o in objects if "meta_info" in o or o.get("metadata")]
    assert_chosen(reports(found[-1]))
    if route != "/generate":
        assert len(found) == 1, "where the answer ends, and only there"


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_each_choice_of_a_stream_has_a_report(server, route):
    objects = streamed(server, route, with_custom_params(route, CHOICE, n=3))
    found = [o for o in objects if "metadata" in o]
    ended = [choice["index"] for o in found for choice in o["choices"] if choice["finish_reason"]]
    assert sorted(ended) == [0, 1, 2]
    assert_chosen([report for o in found for report in reports(o)], choices=3)


def test_each_prompt_and_sample_of_a_batch_has_a_report(server):
    body = with_custom_params("/v1/completions", CHOICE, prompt=[TEXT, "program"], n=2)
    assert_chosen(reports(post(server, "/v1/completions", body).json()), choices=4)


def test_a_stored_response_keeps_its_report(server):
    body = with_custom_params("/v1/responses", CHOICE, metadata={"user": "somebody"})
    made = post(server, "/v1/responses", body).json()
    kept = requests.get(f"{server.url}/v1/responses/{made['id']}", timeout=TIMEOUT_S).json()
    assert kept["metadata"]["user"] == "somebody"
    assert_chosen(reports(kept))


def test_a_response_in_the_background_is_chosen_and_reported(server):
    body = with_custom_params("/v1/responses", CHOICE, background=True)
    made = post(server, "/v1/responses", body).json()
    assert made["status"] == "queued"
    while made["status"] in ("queued", "in_progress"):
        url = f"{server.url}/v1/responses/{made['id']}"
        made = requests.get(url, timeout=TIMEOUT_S).json()
    assert_chosen(reports(made))


@pytest.mark.parametrize("route", BODIES)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_choice_is_a_400(server, route, stream):
    body = with_custom_params(route, {"kv_budget": 17}, stream=stream)
    answer = post(server, route, body)
    assert answer.status_code == 400, answer.text
    assert "kv_budget must be a multiple of" in answer.text


@pytest.mark.parametrize(
    "route", [r for r in STREAMED if r not in ("/v1/responses", "/v1/messages")]
)
def test_whatever_is_wrong_with_a_stream_is_a_400(server, route):
    long = json.dumps({**BODIES[route], "stream": True}).replace(TEXT, f"{TEXT} " * 18_000)
    answer = post(server, route, json.loads(long))
    assert answer.status_code == 400, answer.text
    assert "longer than the model's context length" in answer.text


ELSEWHERE = [
    ("/generate", "kv_policy"),
    ("/generate", "kv_budget"),
    ("/generate", "custom_params"),
    ("/generate", "extra_body.custom_params"),
    ("/generate", "sampling_params.kv_policy"),
    ("/vertex_generate", "custom_params"),
    ("/vertex_generate", "parameters.custom_params"),
    ("/v1/completions", "kv_budget"),
    ("/v1/completions", "extra_body.kv_budget"),
    ("/v1/chat/completions", "kv_policy"),
    ("/v1/chat/completions", "extra_body.custom_params"),
    ("/v1/chat/completions", "sampling_params.custom_params"),
    ("/invocations", "extra_body.sampling_params.custom_params"),
    ("/v1/responses", "kv_policy"),
    ("/v1/messages", "kv_budget"),
    ("/api/generate", "options.custom_params"),
    ("/api/chat", "options.kv_policy"),
]


@pytest.mark.parametrize(("route", "place"), ELSEWHERE)
def test_a_choice_in_a_wrong_place_is_a_400_that_names_the_right_one(server, route, place):
    *holders, name = place.split(".")
    body = json.loads(json.dumps(BODIES[route]))
    holder = body
    for key in holders:
        holder = holder.setdefault(key, {})
    holder[name] = {"custom_params": CHOICE, **CHOICE}[name]
    answer = post(server, route, body)
    assert answer.status_code == 400, answer.text
    right = ".".join((*PLACES.get(route, ()), "custom_params"))
    words = f"kv_policy, kv_budget and kv_trace must stand in {right} of the body, got {place} = "
    assert words in answer.text


@pytest.mark.parametrize("route", SCORING)
def test_a_choice_on_a_route_that_scores_is_a_400(server, route):
    answer = post(server, route, {**MODEL, "custom_params": CHOICE})
    assert answer.status_code == 400, answer.text
    assert "must be sent to a route that takes them" in answer.text


def test_a_choice_beside_an_audio_file_is_a_400(server):
    url = server.url + "/v1/audio/transcriptions"
    files = {"file": ("a.wav", b"RIFF")}
    answer = requests.post(url, files=files, data={"kv_policy": "window"}, timeout=TIMEOUT_S)
    assert answer.status_code == 400, answer.text
    assert "must be sent to a route that takes them, got kv_policy" in answer.text


@pytest.mark.parametrize("route", PLACES)
@pytest.mark.parametrize("stream", [False, True])
def test_a_beam_search_is_a_400_under_every_policy(server, route, stream):
    for custom in (CHOICE, {"kv_policy": "dense"}, None):
        body = with_custom_params(route, custom, stream=stream)
        params = body if route == "/generate" else body["parameters"]
        params["sampling_params"] |= {"beam_width": 2, "n": 2}
        answer = post(server, route, body)
        assert answer.status_code == 400, answer.text
        assert "beam_width must be 1" in answer.text


def test_parameters_of_others_are_left_where_they_are(server):
    body = {**BODIES["/generate"], "custom_params": {"another": 1}, "kv_transfer_params": {}}
    assert post(server, "/generate", body).status_code == 200


def test_exchanges_at_the_same_time_are_told_apart(server):
    def ask(route, policy, budget):
        choice = {"kv_policy": policy, "kv_budget": budget}
        answer = post(server, route, with_custom_params(route, choice, stream=False))
        assert_chosen(reports(answer.json()), (policy, budget))

    calls = [
        partial(ask, route, policy, budget)
        for route in BODIES
        for policy, budget in (("window", 16), ("random", 32), ("raas", 48))
    ]
    together(calls)
    assert generate(server, TEXT)["meta_info"]["kv_policy"] == "raas"


PREFERENCES = [
    (None, ("window", 32)),
    ({}, ("window", 32)),
    ({"other": 1}, ("window", 32)),
    ({"kv_budget": 64}, ("window", 64)),
    ({"kv_policy": "raas"}, ("raas", 32)),
    ({"kv_policy": "dense"}, ("dense", None)),
]


@pytest.mark.parametrize("route", BODIES)
@pytest.mark.parametrize(("custom", "chosen"), PREFERENCES)
def test_what_a_request_does_not_choose_is_preferred(retracting_server, route, custom, chosen):
    body = with_custom_params(route, custom, stream=False)
    answer = post(retracting_server, route, body)
    assert answer.status_code == 200, answer.text
    assert_chosen(reports(answer.json()), chosen)


@pytest.mark.parametrize(
    ("name", "policy", "budget", "largest"),
    [
        ("server", "raas", 64, 512),
        ("retracting_server", "raas", 64, 256),  # from a file
        ("small_server", "raas-paper", 64, 128),  # by `sglang serve`
    ],
)
def test_server_info_tells_policy_and_budget(request, name, policy, budget, largest):
    server = request.getfixturevalue(name)
    told = requests.get(server.url + "/server_info", timeout=TIMEOUT_S).json()
    found = (told["kv_policy"], told["kv_budget"], told["kv_max_budget"])
    assert found == (policy, budget, largest)


def test_a_choice_in_escaped_letters_is_a_choice(server):
    body = json.dumps(with_custom_params("/v1/messages", CHOICE))
    escaped = body.replace('"custom_params"', r'"\u0063ustom_params"').replace('"kv_', r'"\u006bv_')
    assert json.loads(escaped) == json.loads(body)
    headers = {"Content-Type": "application/json"}
    answer = requests.post(
        server.url + "/v1/messages", data=escaped, headers=headers, timeout=TIMEOUT_S
    )
    assert_chosen(reports(answer.json()))
