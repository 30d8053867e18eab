"""`sglang.srt.managers.tokenizer_manager`: request parameters in, the report out.

Why: bad parameters must be a 400 before anything else sees them, and `meta_info` must say what
happened. Remove when: SGLang lets plugins validate requests and add to `meta_info`.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from http import HTTPStatus
from numbers import Integral
from typing import TYPE_CHECKING, Any

from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.plugins.hook_registry import HookType
from sglang.srt.sampling.sampling_params import SamplingParams

from raas_patches.active import required_config
from raas_patches.preference import with_preference
from raas_patches.prompt_length import fit_prompt
from raas_patches.report import show_report
from raas_patches.seam import Seam
from raas_sglang.request import parse_options

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager


def validate_one_request(self: "TokenizerManager", obj: Any, input_ids: list[int]) -> None:
    """Before `_validate_one_request`: a `ValueError` here is the client's 400."""
    if not isinstance(obj, GenerateReqInput):
        return
    obj.sampling_params = with_preference(obj.sampling_params, self.preferred_sampling_params)
    params = {**(self.preferred_sampling_params or {}), **obj.sampling_params}
    limit = params.get("max_new_tokens", SamplingParams().max_new_tokens)
    options = parse_options(
        params.get("custom_params"),
        required_config(self.server_args),
        self.context_len,
        limit if isinstance(limit, int) else None,
        len(obj.input_embeds or ()) if input_ids is None else len(input_ids),
    )
    assert options is not None, "only without a policy, where this is not hooked"
    if options.prompt_len is not None:
        _refuse_with_prompt_len(obj)
    _refuse_unknown_tokens(input_ids, self.model_config.vocab_size)
    _refuse_unknown_parameters(self, params, limit)
    fit_prompt(self, obj, input_ids, options, self.context_len if limit is None else limit)


def _refuse_with_prompt_len(obj: GenerateReqInput) -> None:
    """Raises a `ValueError` for what needs every token of the input, or more tokens than it has."""
    used = {
        "session_params": obj.session_params is not None,
        "input_embeds": obj.input_embeds is not None,
        "images, audio or video": obj.contains_mm_input(),
        "logprob_start_len": obj.return_logprob and obj.logprob_start_len not in (None, -1),
    }
    refused = [name for name, is_used in used.items() if is_used]
    if refused:
        raise ValueError(
            f"kv_prompt_len must be sent without {', '.join(refused)}: tokens of the input that "
            "the budget has no place for are not computed; leave out one or the other"
        )


def _refuse_unknown_parameters(
    self: "TokenizerManager", params: dict[str, Any], max_new_tokens: Any
) -> None:
    """Raises a `ValueError` for what SGLang answers with a `TypeError`, so with a 500, or takes."""
    if max_new_tokens is not None and not isinstance(max_new_tokens, Integral):
        raise ValueError(
            f"max_new_tokens must be an integer number of tokens, got {max_new_tokens!r}"
        )
    try:
        sampling_params = self.sampling_params_class(**params)
        sampling_params.normalize(self.tokenizer)
        sampling_params.verify(self.model_config.vocab_size)
    except TypeError as error:
        raise ValueError(
            f"sampling_params must have names and types that SGLang knows, got: {error}"
        ) from error


def _refuse_unknown_tokens(input_ids: list[int] | None, vocab_size: int) -> None:
    """Raises a `ValueError` for tokens without an embedding; SGLang's scheduler ends of them."""
    if input_ids and (min(input_ids) < 0 or max(input_ids) >= vocab_size):
        raise ValueError(
            f"input_ids must be tokens of the vocabulary (0 to {vocab_size - 1}), "
            f"got {min(input_ids)} to {max(input_ids)}; use this model's tokenizer"
        )


async def wait_one_response(
    original: Callable[..., AsyncIterator[dict[str, Any]]], *args: Any, **kwargs: Any
) -> AsyncIterator[dict[str, Any]]:
    """Around `_wait_one_response`: the latest report becomes fields of `meta_info`.

    Raises:
        ValueError: the scheduler refused the request. A stream would begin with a token that is no
            part of an answer; SGLang raises this itself where there is no stream.
    """
    has_begun = False
    async with aclosing(original(*args, **kwargs)) as responses:  # type: ignore[type-var]
        async for response in responses:
            reason = response["meta_info"].get("finish_reason") or {}
            if not has_begun and reason.get("status_code") == HTTPStatus.BAD_REQUEST:
                raise ValueError(reason["message"])
            has_begun = True
            show_report(response["meta_info"])
            yield response


_PATH = "sglang.srt.managers.tokenizer_manager.TokenizerManager."
SEAMS = (
    Seam(
        _PATH + "_validate_one_request",
        HookType.BEFORE,
        validate_one_request,
        ("self", "obj", "input_ids"),
        "answers bad request parameters with a 400",
        "SGLang lets plugins validate custom_params",
    ),
    Seam(
        _PATH + "_wait_one_response",
        HookType.AROUND,
        wait_one_response,
        ("self", "obj", "request"),
        "says in meta_info what happened to the KV cache",
        "SGLang lets plugins add scalars to meta_info",
    ),
)
