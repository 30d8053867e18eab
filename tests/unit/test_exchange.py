"""What is read out of a body, and what is put into an answer."""

import json

import pytest

from raas_sglang.exchange import Exchange, Route, read_choice, read_limit
from raas_sglang.life.request import REPORT_FIELDS

REPORT = dict(zip(REPORT_FIELDS, ("raas", 64, 170, 164, 6), strict=True))
META = {**REPORT, "finish_reason": {"type": "length"}, "prompt_tokens": 100}
CHOICE = {"kv_policy": "window"}
DROPPED = Route(is_native=False, limit=("options", "num_predict"))
NATIVE = Route(("sampling_params",))


def test_a_choice_is_handed_in_only_where_sglang_drops_it():
    assert read_choice({"custom_params": CHOICE}, DROPPED) == CHOICE
    assert read_choice({"sampling_params": {"custom_params": CHOICE}}, NATIVE) is None
    assert read_choice({"prompt": "kv_policy"}, DROPPED) is None
    assert read_choice(["kv_policy"], DROPPED) is None


@pytest.mark.parametrize(
    "body",
    [
        {"custom_params": CHOICE},
        {"custom_params": "raas"},
        {"kv_budget": 0},
        {"kv_prompt_len": 5},
        {"kv_trace": False},
        {"sampling_params": CHOICE},
        {"sampling_params": [{}, CHOICE]},
        {"extra_body": {"sampling_params": {"custom_params": CHOICE}}},
        {"custom_params": {"kv_polcy": "raas"}},
    ],
)
def test_whatever_would_be_dropped_is_refused(body):
    with pytest.raises(ValueError, match=r"must stand in sampling_params\.custom_params of the"):
        read_choice(body, NATIVE)


@pytest.mark.parametrize(
    "body",
    [
        {"custom_params": {"of": "others"}, "kv_transfer_params": {}},
        {"custom_params": None, "kv_policy": None},
        {"messages": [{"kv_policy": "raas"}], "metadata": CHOICE, "tools": [CHOICE]},
    ],
)
def test_what_is_not_for_us_passes(body):
    assert read_choice(body, NATIVE) is None


def test_a_choice_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match=r"a route that takes them, got custom_params = "):
        read_choice({"custom_params": CHOICE}, Route(where=None))
    assert read_choice({"custom_params": {"of": "others"}}, Route(where=None)) is None


def test_the_limit_is_found_where_the_route_has_it():
    assert read_limit({"options": {"num_predict": 7}}, DROPPED) == 7
    assert read_limit({"options": None}, DROPPED) is None


def test_only_what_has_ended_is_noted():
    exchange = Exchange()
    exchange.note(0, {**META, "finish_reason": None})
    exchange.note(1, {"finish_reason": {"type": "abort"}})
    assert exchange.complete(b'{"a": 1}') == b'{"a": 1}'
    exchange.note(2, META)
    exchange.note(1, META)
    exchange.reports[2]["kv_policy"] = "window"
    assert [report["kv_policy"] for report in exchange.in_order()] == ["raas", "window"]
    answer = json.loads(exchange.complete(b'{"a": 1, "metadata": {"b": 2}}'))
    assert answer == {"a": 1, "metadata": {"b": 2, "kv": exchange.in_order()}}


@pytest.mark.parametrize(
    "last",
    [
        {"choices": [{"index": 0, "finish_reason": "stop"}]},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
        {"done": True, "message": {}},
    ],
)
@pytest.mark.parametrize("prefix", [b"data: ", b""])
def test_the_object_that_ends_a_stream_bears_the_report(last, prefix):
    exchange = Exchange()
    other = prefix + json.dumps({"choices": [{"index": 0, "finish_reason": None}]}).encode()
    chunk = b"event: x\n" + other + b"\n\n" + prefix + json.dumps(last).encode() + b"\n\n"
    assert exchange.complete_stream(chunk) == chunk
    exchange.note(0, META)
    lines = exchange.complete_stream(chunk).split(b"\n")
    assert lines[:3] == [b"event: x", other, b""]
    assert json.loads(lines[3].removeprefix(prefix)) == {**last, "metadata": {"kv": [REPORT]}}
    assert exchange.complete_stream(b"data: [DONE]\n\n") == b"data: [DONE]\n\n"
