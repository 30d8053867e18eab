"""A streamed request that is refused gets the status for it; `http_server` puts the middleware in.

Why: SGLang sends status 200 before it looks at a request that streams, and a refusal as the first
event: of a bad request as an error, of a full queue as one on the OpenAI routes and as an answer
that was aborted on `/generate`. How: a middleware holds the head of a stream back until its first
event. Remove when: SGLang waits for it before it begins a stream.
"""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_EVENT = b"data: "
_HEAD, _BODY = "http.response.start", "http.response.body"


class RefusedStreams:
    """Answers a stream whose first event is an error with that error and its status.

    Args:
        app: What answers.
    """

    def __init__(self, app: "ASGIApp") -> None:
        self._app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Handles one request as ASGI says."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        head: Message | None = None
        is_refused = False

        async def send_in_time(message: "Message") -> None:
            nonlocal head, is_refused
            if message["type"] == _HEAD and _is_stream(message):
                head = message
                return
            if head is not None:
                error = _error_of(message.get("body", b""))
                is_refused = error is not None
                if error is not None:
                    body = json.dumps({"error": error}).encode()
                    await send({**head, "status": error["code"], "headers": _headers(body)})
                    await send({"type": _BODY, "body": body})
                else:
                    await send(head)
                head = None
            if not is_refused:
                await send(message)

        await self._app(scope, receive, send_in_time)


def _is_stream(head: "Message") -> bool:
    kind: bytes = dict(head.get("headers", ())).get(b"content-type", b"")
    return head["status"] == 200 and kind.startswith(b"text/event-stream")


def _error_of(event: bytes) -> dict[str, Any] | None:
    """The error that an event is, if it is one with a status."""
    if not event.startswith(_EVENT + b"{"):
        return None
    item = json.loads(event.removeprefix(_EVENT).partition(b"\n")[0])
    error = item.get("error")
    reason = item.get("meta_info", {}).get("finish_reason") or {}
    if "status_code" in reason and "index" not in item:  # else others of its batch may go on
        error = {"message": reason["message"], "code": reason["status_code"]}
    return error if isinstance(error, dict) and isinstance(error.get("code"), int) else None


def _headers(body: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
