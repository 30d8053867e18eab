"""`sglang.srt.entrypoints.openai`: the report in chat and text completions.

Why: these routes drop `meta_info` (chat can return it, completions cannot). How: one entry per
choice under ``metadata["kv"]``, beside SGLang's own ``weight_version``. Remove when: both routes
return `meta_info`.
"""

from typing import Any

from sglang.srt.plugins.hook_registry import HookType

from raas_patches.seam import Seam
from raas_sglang.request import REPORT_FIELDS


def build_response(
    response: Any, self: Any, request: Any, ret: list[dict[str, Any]], created: int
) -> Any:
    """After the builder of a response that is not streamed."""
    metadata = getattr(response, "metadata", None)
    if metadata is not None:
        metadata["kv"] = [
            {key: item["meta_info"].get(key) for key in REPORT_FIELDS} for item in ret
        ]
    return response


_PATH = "sglang.srt.entrypoints.openai."
_PARAMETERS = ("self", "request", "ret", "created")
_WHY = "says in each response what happened to the KV cache"
_UNTIL = "the OpenAI routes return meta_info"
SEAMS = (
    Seam(
        _PATH + "serving_chat.OpenAIServingChat._build_chat_response",
        HookType.AFTER,
        build_response,
        _PARAMETERS,
        _WHY,
        _UNTIL,
    ),
    Seam(
        _PATH + "serving_completions.OpenAIServingCompletion._build_completion_response",
        HookType.AFTER,
        build_response,
        _PARAMETERS,
        _WHY,
        _UNTIL,
    ),
)
