"""`sglang.srt.entrypoints.http_server`: each route that generates takes a choice and reports.

Why: of the routes that generate SGLang lets ``custom_params`` through on five and drops them on
four, drops them wherever they stand in a wrong place, and returns `meta_info` on two. How: an ASGI
middleware, next to the routes so that SGLang's own have checked and decompressed a body, reads
requests and completes answers; in between the engine finds the exchange in a context variable.
`/v1/responses` makes answers that it keeps, so its report is put in when it does. Remove when:
SGLang has a place for extra parameters and extra output on all routes.
"""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from sglang.srt.plugins.hook_registry import HookType
from starlette.middleware import Middleware

from raas_patches.active import config_of
from raas_patches.exchange_middleware import ExchangeMiddleware
from raas_patches.refused_streams import RefusedStreams
from raas_patches.seam import Seam
from raas_sglang.config import RaasConfig
from raas_sglang.exchange import CHOICE_KEY, Exchange, Route, current

if TYPE_CHECKING:
    from sglang.srt.managers.io_struct import GenerateReqInput
    from sglang.srt.managers.tokenizer_manager import TokenizerManager
    from sglang.srt.server_args import ServerArgs

# The keys are SGLang's functions, since environment variables can change the paths.
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
    **dict.fromkeys(
        (
            "v1_score_request",
            "v1_decisions_request",
            "systemone_decisions",
            "v1_rerank_request",
            "openai_v1_audio_transcriptions",
        ),
        Route(where=None, has_meta_info=True),
    ),
}


def setup_and_run_http_server(
    server_args: "ServerArgs", tokenizer_manager: "TokenizerManager", *args: Any, **kwargs: Any
) -> None:
    """Before `_setup_and_run_http_server`: the application is complete and not yet running."""
    from sglang.srt.entrypoints.http_server import app

    config = config_of(server_args)
    if config is not None:
        follow(app, config, tokenizer_manager.context_len)


def follow(app: FastAPI, config: RaasConfig, context_len: int) -> None:
    """Lets an application that has not started follow its exchanges and refuse its streams.

    SGLang's `add_middleware` would put ours before those that decompress, authorise and count.
    """
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    known = {route.path: ROUTES.get(route.endpoint.__name__) for route in routes}
    paths = {path: route for path, route in known.items() if route is not None}
    app.user_middleware += [
        Middleware(RefusedStreams),
        Middleware(ExchangeMiddleware, paths=paths, config=config, context_len=context_len),
    ]


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
        "tests/server/test_routes.py::test_a_streamed_answer_reports_when_it_ends",
    ),
    Seam(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager.generate_request",
        HookType.AROUND,
        generate_request,
        ("self", "obj", "request"),
        "passes on the choice of a route that drops it, and takes its report",
        _UNTIL,
        "tests/server/test_routes.py::test_a_choice_is_honoured_and_reported",
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
        "tests/server/test_routes.py::test_a_stored_response_keeps_its_report",
    ),
)
