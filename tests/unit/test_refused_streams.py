"""What a stream that is refused is answered with, by its first event."""

import asyncio
import json

import pytest

from raas_patches.refused_streams import RefusedStreams

HEAD = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8")],
}
FULL = {"type": "abort", "message": "The request queue is full.", "status_code": 503}
TOKEN = {"text": "a", "meta_info": {"finish_reason": None}}
BAD = {"error": {"message": "kv_budget must be", "code": 400}}


def answered(*events: dict) -> list[dict]:
    """What a client gets of a stream of these events."""

    async def app(scope, receive, send):
        await send(HEAD)
        for event in events:
            body = b"data: " + json.dumps(event).encode() + b"\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(RefusedStreams(app)({"type": "http"}, None, send))
    return sent


@pytest.mark.parametrize(
    ("event", "status"),
    [
        (BAD, 400),
        ({"error": {"message": "full", "code": 503}}, 503),
        ({"text": "a", "meta_info": {"finish_reason": FULL}}, 503),
    ],
)
def test_a_stream_that_begins_with_a_refusal_has_its_status(event, status):
    head, body = answered(event, TOKEN)
    assert head["status"] == status
    assert dict(head["headers"])[b"content-type"] == b"application/json"
    error = json.loads(body["body"])["error"]
    assert error["code"] == status
    assert error["message"]
    assert "more_body" not in body


@pytest.mark.parametrize(
    "events",
    [
        [TOKEN, BAD],
        [{"text": "a", "meta_info": {"finish_reason": {"type": "abort", "message": "asked for"}}}],
        # One of several prompts; the others go on.
        [{"text": "a", "index": 1, "meta_info": {"finish_reason": FULL}}, TOKEN],
    ],
)
def test_any_other_stream_is_as_it_was(events):
    head, *rest = answered(*events)
    assert head == HEAD
    assert len(rest) == len(events) + 1
    assert json.loads(rest[0]["body"].removeprefix(b"data: ")) == events[0]
