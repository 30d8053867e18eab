"""The ASGI middleware that follows requests which choose a policy; `http_server` puts it in.

It stands next to the routes, so that SGLang's own have checked and decompressed a body.
"""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson
from fastapi import HTTPException, Request

from raas_sglang.config import RaasConfig
from raas_sglang.exchange import CHOICE_KEY, Exchange, Route, current, read_choice, read_limit
from raas_sglang.life.options import parse_options

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# A body without any of these asks for nothing of ours; JSON may write a letter as its number.
_SIGNS = (b"kv_", CHOICE_KEY.encode(), b"\\u00")


class ExchangeMiddleware:
    """Follows the requests of some routes; all others pass.

    Args:
        app: The next ASGI application.
        paths: Route by path.
        config: The server's settings.
        context_len: The model's context length in tokens.
    """

    def __init__(
        self, app: Any, paths: dict[str, Route], config: RaasConfig, context_len: int
    ) -> None:
        self._app, self._paths = app, paths
        self._config, self._context_len = config, context_len

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers one request."""
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        route = self._paths.get(path) if scope["type"] == "http" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        body, receive = await _read_body(receive)
        exchange = Exchange()
        sender = _Sender(send, exchange, completes=not route.has_meta_info)
        token = current.set(exchange)
        try:
            exchange.choice = self._checked_choice(body, route)
            await self._app(scope, receive, sender)
        except ValueError as error:  # Ollama's routes leave a refusal to whoever called them
            if sender.has_begun:
                raise
            refuse = scope["app"].exception_handlers[HTTPException]
            refusal = await refuse(Request(scope), HTTPException(400, str(error)))
            await refusal(scope, receive, send)
        finally:
            current.reset(token)

    def _checked_choice(self, body: bytes, route: Route) -> dict[str, Any] | None:
        if not any(sign in body for sign in _SIGNS):
            return None
        try:
            parsed = orjson.loads(body)
        except orjson.JSONDecodeError:
            # The body is a form; if it is neither, SGLang refuses it in its own words.
            parsed = {name.decode(): "..." for name in re.findall(rb'name="(\w+)"', body)}
        choice = read_choice(parsed, route)
        if choice is not None:
            limit = read_limit(parsed, route)
            parse_options(choice, self._config, self._context_len, limit)
        return choice  # type: ignore[no-any-return]


class _Sender:
    """Sends an answer on, completed: as a whole where it is JSON, else while it streams.

    Its head goes with the first of its body: before that it may still be refused.
    """

    def __init__(self, send: Send, exchange: Exchange, completes: bool) -> None:
        self.has_begun = False
        self._send, self._exchange, self._completes = send, exchange, completes
        self._head: Message = {}
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._head = message
            return
        body = message.get("body", b"")
        if self._completes and not self.has_begun and _is_whole(self._head):
            self._body += body
            if message.get("more_body"):
                return
            body = self._exchange.complete(self._body)
            self._head["headers"] = _with_length(self._head["headers"], len(body))
        elif self._completes:
            body = self._exchange.complete_stream(body)
        if not self.has_begun:
            self.has_begun = True
            await self._send(self._head)
            self._head = {}  # a stream that has ended may be held for a while
        await self._send({**message, "body": body})


def _is_whole(head: Message) -> bool:
    kind: bytes = dict(head["headers"]).get(b"content-type", b"")
    return bool(head["status"] == 200 and kind.startswith(b"application/json"))


def _with_length(headers: list[tuple[bytes, bytes]], length: int) -> list[tuple[bytes, bytes]]:
    others = [item for item in headers if item[0] != b"content-length"]
    return [*others, (b"content-length", b"%d" % length)]


async def _read_body(receive: Receive) -> tuple[bytes, Receive]:
    """Returns a request's body, and what lets it be received again."""
    messages = [await receive()]
    while messages[-1].get("more_body"):
        messages.append(await receive())
    again = iter(messages)

    async def receive_again() -> Message:
        message = next(again, None)
        return message if message is not None else await receive()

    return b"".join(message.get("body", b"") for message in messages), receive_again
