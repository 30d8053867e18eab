"""Requests that are refused with a 400.

SGLang would answer most of them with a 500, or its scheduler would end: whoever shares a server
must not be ended by another's mistake.
"""

import re
from numbers import Integral
from typing import TYPE_CHECKING, Any

from sglang.srt.managers.embed_types import PositionalEmbeds
from sglang.srt.sampling.sampling_params import SamplingParams

if TYPE_CHECKING:
    from sglang.srt.managers.io_struct import GenerateReqInput
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

_SESSION_PARAMS = {
    **dict.fromkeys(("id", "rid"), str),
    **dict.fromkeys(("replace", "drop_previous_output"), bool),
    "offset": int,
}


def require_sound(
    self: "TokenizerManager",
    obj: "GenerateReqInput",
    params: dict[str, Any],
    input_ids: list[int] | None,
) -> None:
    """Checks what SGLang does not.

    Args:
        self: SGLang's.
        obj: The request, of one input.
        params: Its sampling parameters, preferred ones included.
        input_ids: Its tokens; None if it came as embeddings.

    Raises:
        ValueError: something is wrong with it; the text is meant for the client.
    """
    config = self.model_config
    if input_ids is not None and not input_ids and not obj.contains_mm_input():
        raise ValueError("the input must have at least one token, got none; send a prompt")
    sampling_params = _known_parameters(self, params)
    _refuse_beyond_range(obj, sampling_params, input_ids, config.vocab_size)
    _refuse_other_session_params(obj.session_params or {})
    _refuse_other_embeds(obj, config.hidden_size)


def require_all_of_it(obj: "GenerateReqInput") -> None:
    """Checks that a request with `kv_prompt_len` asks for nothing that needs each of its tokens.

    Raises:
        ValueError: it does, or has parts that are no tokens.
    """
    used = {
        "session_params": obj.session_params is not None,
        "input_embeds": obj.input_embeds is not None,
        "positional_embed_overrides": obj.positional_embed_overrides is not None,
        "images, audio or video": obj.contains_mm_input(),
        "logprob_start_len": obj.return_logprob and obj.logprob_start_len not in (None, -1),
    }
    refused = [name for name, is_used in used.items() if is_used]
    if refused:
        raise ValueError(
            f"kv_prompt_len must be sent without {', '.join(refused)}: tokens of the input that "
            "the budget has no place for are not computed; leave out one or the other"
        )


def _known_parameters(self: "TokenizerManager", params: dict[str, Any]) -> SamplingParams:
    limit = params.get("max_new_tokens")
    if limit is not None and not isinstance(limit, Integral):
        raise ValueError(f"max_new_tokens must be an integer number of tokens, got {limit!r}")
    try:
        sampling_params = self.sampling_params_class(**params)
        sampling_params.normalize(self.tokenizer)
        sampling_params.verify(self.model_config.vocab_size)
    except (TypeError, re.error) as error:
        raise ValueError(
            f"sampling_params must have names and values that SGLang knows, got: {error}"
        ) from error
    return sampling_params


def _refuse_beyond_range(
    obj: "GenerateReqInput", params: SamplingParams, input_ids: list[int] | None, vocab_size: int
) -> None:
    barred = params.stop_token_ids if params.min_new_tokens else None
    for name, ids in (("input_ids", input_ids), ("stop_token_ids with min_new_tokens", barred)):
        if ids and (min(ids) < 0 or max(ids) >= vocab_size):
            raise ValueError(
                f"{name} must be tokens of the vocabulary (0 to {vocab_size - 1}), "
                f"got {min(ids)} to {max(ids)}; use this model's tokenizer"
            )
    if not 0 <= (obj.top_logprobs_num or 0) <= vocab_size:
        raise ValueError(
            f"top_logprobs_num must be from 0 to the size of the vocabulary ({vocab_size}), "
            f"got {obj.top_logprobs_num}; ask for fewer"
        )
    if (obj.logprob_start_len or 0) < -1:
        raise ValueError(
            f"logprob_start_len must be a position in the input, or -1 for its end, "
            f"got {obj.logprob_start_len}; leave it out for logprobs of generated tokens alone"
        )


def _refuse_other_session_params(params: dict[str, Any]) -> None:
    for name, value in params.items():
        kind = _SESSION_PARAMS.get(name)
        if kind is None:
            raise ValueError(
                f"session_params must hold {', '.join(_SESSION_PARAMS)}, got {name}; leave it out"
            )
        if value is not None and not isinstance(value, kind):
            raise ValueError(
                f"{name} in session_params must be of type {kind.__name__}, got {value!r}"
            )


def _refuse_other_embeds(obj: "GenerateReqInput", hidden_size: int) -> None:
    overrides = obj.positional_embed_overrides
    if overrides is not None and not isinstance(overrides, PositionalEmbeds):
        raise ValueError(
            "positional_embed_overrides must be SGLang's PositionalEmbeds, which JSON cannot hold, "
            f"got {type(overrides).__name__}; leave it out, or use SGLang's Engine"
        )
    sizes = {len(each) for each in obj.input_embeds or ()}
    if sizes - {hidden_size}:
        raise ValueError(
            f"each of input_embeds must have {hidden_size} numbers, the size of the model's "
            f"hidden states, got {sorted(sizes)}"
        )
