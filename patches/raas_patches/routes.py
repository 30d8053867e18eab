"""SGLang's HTTP routes: every one that generates takes a choice and reports.

Why: of the routes that generate SGLang lets ``custom_params`` through on five and drops them on
four, drops them wherever they stand in a wrong place, and returns `meta_info` on two. How: one ASGI
middleware, next to the routes so that SGLang's own have checked and decompressed a body, reads
requests and completes answers; in between the engine finds the exchange in a context variable.
`/v1/responses` makes answers that it keeps, so its report is put in when it does. Remove when:
SGLang has a place for extra parameters and extra output on all routes.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import FastAPI, HTTPException, Request
from fastapi.routing import APIRoute
from sglang.srt.plugins.hook_registry import HookType
from starlette.middleware import Middleware

from raas_patches.active import required_config
from raas_patches.refused_streams import RefusedStreams
from raas_patches.seam import Seam
from raas_sglang.config import RaasConfig
from raas_sglang.exchange import CHOICE_KEY, Exchange, Route, current, read_choice, read_limit
from raas_sglang.request import parse_options

if TYPE_CHECKING:
    from sglang.srt.managers.io_struct import GenerateReqInput
    from sglang.srt.managers.tokenizer_manager import TokenizerManager
    from sglang.srt.server_args import ServerArgs

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# A body without any of these asks for nothing of ours; JSON may write a letter as its number.
_SIGNS = (b"kv_", CHOICE_KEY.encode(), b"\\u00")
# By SGLang's functions, since paths can be changed by environment variables.
ROUTES = {
    "generate_request": Route(("sampling_params",), has_meta_info=True),
    "vertex_generate": Route(("parameters", "sampling_params"), has_meta_info=True),
    "openai_v1_completions": Route(),
    "openai_v1_chat_completions": Route(),
    "sagemaker_chat_completions": Route(),
    "v1_responses_request": Route(
        is_native=False, limit=("max_output_tokens",), has_meta_info=True
    ),
    "anthropic_v1_messages": Route(is_native=False, limit=("max_tokens",)),
    "ollama_chat": Route(is_native=False, limit=("options", "num_predict")),
    "ollama_generate": Route(is_native=False, limit=("options", "num_predict")),
}


class ExchangeMiddleware:
    """Follows the requests of `ROUTES`; all others pass.

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
            return None  # SGLang refuses it in its own words
        choice = read_choice(parsed, route)
        if choice is not None:
            limit = read_limit(parsed, route)
            parse_options(choice, self._config, self._context_len, limit)
        return choice  # type: ignore[no-any-return]


class _Sender:
    """Sends an answer on, completed: as a whole where it is JSON, else while it streams."""

    def __init__(self, send: Send, exchange: Exchange, completes: bool) -> None:
        self.has_begun = False
        self._send, self._exchange, self._completes = send, exchange, completes
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
        if not self._completes:
            await self._send(message)
            return
        if message["type"] == "http.response.start":
            headers = dict(message["headers"])
            kind = headers.get(b"content-type", b"")
            if message["status"] == 200 and kind.startswith(b"application/json"):
                self._start = message
                return
        elif message["type"] == "http.response.body" and self._start is not None:
            self._body += message.get("body", b"")
            if not message.get("more_body"):
                await self._send_whole(self._start)
            return
        elif message["type"] == "http.response.body" and message.get("body"):
            body = self._exchange.complete_stream(message["body"])
            message = {**message, "body": body}
        await self._send(message)

    async def _send_whole(self, start: Message) -> None:
        body = self._exchange.complete(self._body)
        headers = [item for item in start["headers"] if item[0] != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await self._send({**start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


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


def setup_and_run_http_server(
    server_args: "ServerArgs", tokenizer_manager: "TokenizerManager", *args: Any, **kwargs: Any
) -> None:
    """Before `_setup_and_run_http_server`: the application is complete and not yet running."""
    from sglang.srt.entrypoints.http_server import app

    follow(app, required_config(server_args), tokenizer_manager.context_len)
    app.add_middleware(RefusedStreams)


def follow(app: FastAPI, config: RaasConfig, context_len: int) -> None:
    """Lets an application that has not started follow its exchanges."""
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    known = {route.path: ROUTES.get(route.endpoint.__name__) for route in routes}
    paths = {path: route for path, route in known.items() if route is not None}
    # SGLang's `add_middleware` would put it before those that decompress and authorise.
    app.user_middleware.append(
        Middleware(ExchangeMiddleware, paths=paths, config=config, context_len=context_len)
    )


def generate_request(
    original: Callable[..., AsyncIterator[Any]],
    self: "TokenizerManager",
    obj: "GenerateReqInput",
    request: Any = None,
) -> AsyncIterator[Any]:
    """Around `generate_request`: hands a choice in where its route dropped it, and a report out."""
    exchange = current.get()
    if exchange is None:
        return original(self, obj, request)
    if exchange.choice is not None:
        obj.sampling_params = {**obj.sampling_params, CHOICE_KEY: exchange.choice}
    return _followed(original(self, obj, request), exchange)


async def _followed(answers: AsyncIterator[Any], exchange: Exchange) -> AsyncIterator[Any]:
    async with aclosing(answers):  # type: ignore[type-var]
        async for answer in answers:
            for position, item in enumerate(answer if isinstance(answer, list) else [answer]):
                exchange.note(item.get("index", position), item.get("meta_info", {}))
            yield answer


def from_request(response: Any, *args: Any, **kwargs: Any) -> Any:
    """After `ResponsesResponse.from_request`: the report as text, as OpenAI's metadata must be."""
    exchange = current.get()
    if exchange is not None and exchange.reports:
        kv = json.dumps(exchange.in_order())
        response.metadata = {**(response.metadata or {}), "kv": kv}
    return response


_UNTIL = "SGLang's routes take extra parameters and return extra output"
SEAMS = (
    Seam(
        "sglang.srt.entrypoints.http_server._setup_and_run_http_server",
        HookType.BEFORE,
        setup_and_run_http_server,
        (
            "server_args",
            "tokenizer_manager",
            "template_manager",
            "port_args",
            "scheduler_infos",
            "subprocess_watchdog",
            "execute_warmup_func",
            "launch_callback",
        ),
        "reads the choice of every route, completes its answer and its status",
        _UNTIL,
    ),
    Seam(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager.generate_request",
        HookType.AROUND,
        generate_request,
        ("self", "obj", "request"),
        "hands in the choice of a route that drops it, and its report out",
        _UNTIL,
    ),
    Seam(
        "sglang.srt.entrypoints.openai.protocol.ResponsesResponse.from_request",
        HookType.AFTER,
        from_request,
        (
            "request",
            "sampling_params",
            "model_name",
            "created_time",
            "output",
            "status",
            "usage",
        ),
        "says in a stored response what happened to the KV cache",
        _UNTIL,
    ),
)
