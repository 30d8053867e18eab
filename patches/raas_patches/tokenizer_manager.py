"""`sglang.srt.managers.tokenizer_manager`: request parameters in, the report out.

A process may have engines with a policy and without; the hooks leave the latter alone.

Why: bad parameters must be a 400 before anything else sees them, and `meta_info` must say what
happened. Remove when: SGLang lets plugins validate requests and add to `meta_info`.
"""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.plugins.hook_registry import HookType
from sglang.srt.runtime_context import get_schedule
from sglang.srt.sampling.sampling_params import SamplingParams

from raas_patches.active import config_of, pool_tokens_of
from raas_patches.output_streamer import REPORT_KEY
from raas_patches.seam import Seam
from raas_sglang.life.options import parse_options
from raas_sglang.life.preference import with_preference
from raas_sglang.life.room import Room, fit_prompt
from raas_sglang.support.inputs import require_all_of_it, require_sound

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import ReqState, TokenizerManager


def validate_one_request(self: "TokenizerManager", obj: Any, input_ids: list[int]) -> None:
    """Before `_validate_one_request`: a `ValueError` here is the client's 400."""
    config = config_of(self.server_args)
    if config is None or not isinstance(obj, GenerateReqInput):
        return
    if not isinstance(obj.sampling_params, dict):
        kind = type(obj.sampling_params).__name__
        raise ValueError(f"sampling_params must be an object for one input, got {kind}; send one")
    obj.sampling_params = with_preference(obj.sampling_params, self.preferred_sampling_params)
    params = {**(self.preferred_sampling_params or {}), **obj.sampling_params}
    limit = params.get("max_new_tokens", SamplingParams().max_new_tokens)
    length = len(obj.input_embeds or ()) if input_ids is None else len(input_ids)
    options = parse_options(
        params.get("custom_params"),
        config,
        self.context_len,
        limit if isinstance(limit, int) else None,
        length,
        params.get("beam_width"),
    )
    assert options is not None, "only without a policy"
    if options.prompt_len is not None:
        require_all_of_it(obj)
    require_sound(self, obj, params, input_ids)
    room = Room(pool_tokens_of(self), get_schedule().page_size, self.context_len)
    cut_from = self.max_req_input_len if self.allow_auto_truncate else None
    fit_prompt(room, options, input_ids, length, limit, cut_from)


def update_request_meta_info(
    original: Callable[..., None],
    self: "TokenizerManager",
    meta_info: dict[str, Any],
    state: "ReqState",
    customized_info: dict[str, Any],
    index: int,
    finish_reason: dict[str, Any] | None,
) -> None:
    """Around it: the report is that of this message; SGLang joins the rest of all messages."""
    if config_of(self.server_args) is None:
        original(self, meta_info, state, customized_info, index, finish_reason)
        return
    rest = {key: values for key, values in customized_info.items() if key != REPORT_KEY}
    original(self, meta_info, state, rest, index, finish_reason)
    meta_info.update(customized_info[REPORT_KEY][index])


def handle_abort_finish_reason(
    original: Callable[..., Awaitable[dict[str, Any] | None]],
    self: "TokenizerManager",
    out: dict[str, Any],
    state: "ReqState",
    is_stream: bool,
) -> Awaitable[dict[str, Any] | None]:
    """Around it: refuses a stream of which nothing was sent as an answer in one piece.

    SGLang would send a token that nobody generated.
    """
    if config_of(self.server_args) is None:
        return original(self, out, state, is_stream)
    meta_info = out["meta_info"]
    is_bad = meta_info["finish_reason"].get("status_code") == HTTPStatus.BAD_REQUEST
    is_first = _FIRST_SENT in meta_info
    return original(self, out, state, is_stream and not (is_bad and is_first))


# Only the first response of a request has this key.
_FIRST_SENT = "response_sent_to_client_ts"
_PATH = "sglang.srt.managers.tokenizer_manager.TokenizerManager."
SEAMS = (
    Seam(
        _PATH + "_validate_one_request",
        HookType.BEFORE,
        validate_one_request,
        ("self", "obj", "input_ids"),
        "answers bad request parameters with a 400",
        "SGLang lets plugins validate custom_params",
        "tests/server/test_endpoints.py::test_a_bad_request_is_a_400_with_the_reason",
    ),
    Seam(
        _PATH + "update_request_meta_info",
        HookType.AROUND,
        update_request_meta_info,
        ("self", "meta_info", "state", "customized_info", "index", "finish_reason"),
        "says in meta_info what happened to the KV cache",
        "SGLang lets plugins add scalars to meta_info",
        "tests/server/test_endpoints.py::test_streaming_says_in_every_chunk_what_happened",
    ),
    Seam(
        _PATH + "_handle_abort_finish_reason",
        HookType.AROUND,
        handle_abort_finish_reason,
        ("self", "out", "state", "is_stream"),
        "refuses a stream that has not begun with a 400",
        "SGLang refuses streams as it refuses other answers",
        "tests/server/test_endpoints.py::test_an_invalid_grammar_is_a_400",
    ),
)
