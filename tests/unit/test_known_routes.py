"""No route of SGLang's generates without being followed."""

import inspect
import re

from fastapi.routing import APIRoute
from sglang.srt.entrypoints.http_server import app

from raas_patches.http_server import ROUTES

HANDLER = re.compile(r"state\.\w*serving|generate_request\(")
# They count, answer from what is stored, or need a model that generates nothing.
OTHERS = {
    "anthropic_v1_count_tokens",
    "classify_request",
    "encode_request",
    "health_generate",
    "ollama_show",
    "ollama_tags",
    "openai_v1_classify",
    "openai_v1_detokenize",
    "openai_v1_embeddings",
    "openai_v1_tokenize",
    "parse_function_call_request",
    "separate_reasoning_request",
    "v1_cancel_responses",
    "v1_retrieve_responses",
}


def test_every_route_that_reaches_a_handler_is_known():
    endpoints = [route.endpoint for route in app.routes if isinstance(route, APIRoute)]
    handled = {e.__name__ for e in endpoints if HANDLER.search(inspect.getsource(e))}
    assert handled - OTHERS == set(ROUTES)
