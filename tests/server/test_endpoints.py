"""Every way into the server: routes, streaming, logprobs, n, stop strings, constrained output."""

import json

import pytest
import requests

from client import (
    TIMEOUT_S,
    assert_chain_right,
    assert_report,
    generate,
    post,
    problem,
    request,
    together,
)
from raas_sglang.life.request import REPORT_FIELDS

LINES = 18
RAAS = {"kv_policy": "raas", "kv_budget": 256}


def openai_body(asked, **extra):
    return {
        "model": "reasoner",
        "temperature": 0,
        "max_tokens": 300,
        "custom_params": RAAS,
        **extra,
    }


def assert_metadata(body, policy="raas", budget=256, choices=1):
    reports = body["metadata"]["kv"]
    assert len(reports) == choices
    for report in reports:
        assert set(report) == set(REPORT_FIELDS)
        assert (report["kv_policy"], report["kv_budget"]) == (policy, budget)
        assert report["resident_tokens"] <= body["usage"]["prompt_tokens"] + budget


def test_chat_completions(server):
    asked = problem(LINES)
    messages = [{"role": "user", "content": asked.prompt}]
    body = post(server, "/v1/chat/completions", openai_body(asked, messages=messages)).json()
    assert body["choices"][0]["message"]["content"].strip() == asked.chain
    assert_metadata(body)


def test_completions(server):
    asked = problem(LINES)
    body = post(server, "/v1/completions", openai_body(asked, prompt=asked.prompt)).json()
    assert body["choices"][0]["text"].strip() == asked.chain
    assert_metadata(body)


def test_completions_without_a_choice_follow_the_server(server):
    asked = problem(4)
    body = openai_body(asked, prompt=asked.prompt)
    del body["custom_params"]
    assert_metadata(post(server, "/v1/completions", body).json(), "raas", 64)


def test_streaming_says_in_every_chunk_what_happened(server):
    asked = problem(LINES)
    body = request(asked.prompt, "raas", 64, 300, stream=True)
    chunks = []
    with requests.post(
        server.url + "/generate", json=body, stream=True, timeout=TIMEOUT_S
    ) as lines:
        for line in lines.iter_lines():
            if line.startswith(b"data: {"):
                chunks.append(json.loads(line[6:]))
    assert len(chunks) > 50
    lengths = [chunk["meta_info"]["logical_tokens"] for chunk in chunks]
    assert lengths == sorted(lengths)
    for chunk in chunks:
        assert_report(chunk, "raas", 64)
    assert chunks[-1]["text"] == generate(server, asked.prompt, "raas", 64, 300)["text"]


def test_streaming_chat(server):
    asked = problem(LINES)
    messages = [{"role": "user", "content": asked.prompt}]
    body = openai_body(asked, messages=messages, stream=True)
    text = ""
    with requests.post(
        server.url + "/v1/chat/completions", json=body, stream=True, timeout=TIMEOUT_S
    ) as lines:
        for line in lines.iter_lines():
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    text += choice["delta"].get("content") or ""
    assert text.strip() == asked.chain


def test_log_probabilities_cover_evicted_tokens_too(server):
    asked = problem(LINES)
    answer = generate(
        server, asked.prompt, "raas", 64, 300, return_logprob=True, top_logprobs_num=2
    )
    info = answer["meta_info"]
    assert info["evicted_tokens"] > 0
    assert len(info["output_token_logprobs"]) == info["completion_tokens"]
    assert [entry[1] for entry in info["output_token_logprobs"]] == answer["output_ids"]


def test_several_samples_of_one_prompt(server):
    asked = problem(LINES)
    body = request(asked.prompt, "raas", 256, 300, sampling_params={"n": 3, "temperature": 0})
    answers = post(server, "/generate", body).json()
    assert len(answers) == 3
    for answer in answers:
        assert_report(answer, "raas", 256)
        assert_chain_right(asked, answer)


def test_a_batch_where_each_request_chooses(server):
    asked = [problem(LINES, inputs=index) for index in range(2)]
    params = [
        {"temperature": 0, "max_new_tokens": 300, "custom_params": {"kv_policy": policy}}
        for policy in ("dense", "window")
    ]
    body = {"text": [one.prompt for one in asked], "sampling_params": params}
    dense, window = post(server, "/generate", body).json()
    assert_report(dense, "dense", None)
    assert_chain_right(asked[0], dense)
    assert_report(window, "window", 64)


def test_a_stop_string_ends_a_saturated_request(server):
    asked = problem(LINES)
    stop = {"sampling_params": {"stop": [" answer"]}}
    answer = generate(server, asked.prompt, "raas", 256, 300, **stop)
    assert answer["meta_info"]["finish_reason"]["matched"] == " answer"
    assert answer["text"] == " " + asked.chain.split(" answer")[0]


def test_constrained_json_output(server):
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "integer"}},
        "required": ["answer"],
    }
    extra = {"sampling_params": {"json_schema": json.dumps(schema)}}
    answer = generate(server, problem(4).prompt, "raas", 16, 60, **extra)
    assert isinstance(json.loads(answer["text"])["answer"], int)
    assert_report(answer, "raas", 16)


BAD = [
    ({"kv_policy": "lru"}, "kv_policy must be one of"),
    ({"kv_policy": 1}, "kv_policy must be one of"),
    ({"kv_budget": "64"}, "must be an integer number of tokens"),
    ({"kv_budget": 0}, "must be at least 16 tokens"),
    ({"kv_budget": -16}, "must be at least 16 tokens"),
    ({"kv_budget": 101}, "got 101; use 96 or 112"),
    ({"kv_budget": 1 << 20}, "must be at most the context length (16384 tokens)"),
    ({"kv_budget": 1024}, "restart the server with --kv-max-budget 1024"),
    ({"kv_budgets": 64}, "got unknown ['kv_budgets']"),
]


@pytest.mark.parametrize(("custom", "text"), BAD)
@pytest.mark.parametrize("route", ["/generate", "/v1/completions", "/v1/chat/completions"])
def test_a_bad_request_is_a_400_with_the_reason(server, route, custom, text):
    message = {"role": "user", "content": "solve"}
    body = {
        "/generate": {
            "text": "solve",
            "sampling_params": {"max_new_tokens": 2000, "custom_params": custom},
        },
        "/v1/completions": {"prompt": "solve", "max_tokens": 2000, "custom_params": custom},
        "/v1/chat/completions": {
            "messages": [message],
            "max_tokens": 2000,
            "custom_params": custom,
        },
    }[route]
    response = post(server, route, {"model": "reasoner", **body})
    assert response.status_code == 400, response.text
    assert text in json.dumps(response.json(), ensure_ascii=False)


@pytest.mark.parametrize("custom", ["raas", 7, [1, 2]])
def test_custom_params_of_a_wrong_type_are_refused(server, custom):
    body = {"text": "solve", "sampling_params": {"custom_params": custom}}
    response = post(server, "/generate", body)
    assert response.status_code == 400
    assert "custom_params must be an object" in response.text


def test_bad_requests_disturb_nobody(server):
    asked = problem(LINES)
    quiet = generate(server, asked.prompt, "raas", 64, 300)

    def disturb():
        for custom, _ in BAD * 3:
            params = {"max_new_tokens": 2000, "custom_params": custom}
            body = {"text": "solve", "sampling_params": params}
            assert post(server, "/generate", body).status_code == 400

    loud, _ = together([lambda: generate(server, asked.prompt, "raas", 64, 300), disturb])
    assert loud["output_ids"] == quiet["output_ids"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("samples", [1, 2])
def test_an_invalid_grammar_is_a_400(server, stream, samples):
    params = {"regex": "([", "n": samples}
    body = request(problem(4).prompt, "raas", 16, 60, sampling_params=params, stream=stream)
    response = post(server, "/generate", body)
    assert response.status_code == 400, response.text
    assert "output_ids" not in response.text
    assert_report(generate(server, problem(4).prompt, "raas", 16, 20), "raas", 16)


def test_tools(server):
    parameters = {"type": "object", "properties": {"answer": {"type": "integer"}}}
    tool = {"type": "function", "function": {"name": "solve", "parameters": parameters}}
    messages = [{"role": "user", "content": problem(LINES).prompt}]
    body = openai_body(None, messages=messages, tools=[tool])
    response = post(server, "/v1/chat/completions", body)
    assert response.status_code == 200, response.text
    assert_metadata(response.json())
