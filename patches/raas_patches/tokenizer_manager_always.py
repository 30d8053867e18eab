"""`sglang.srt.managers.tokenizer_manager`: what a server without ``--kv-policy`` does differently.

Why: a request that asks for a policy must not silently be served dense. How: it is a 400;
nothing else about any request is looked at. Remove when: SGLang refuses unknown ``custom_params``.
"""

from typing import TYPE_CHECKING, Any

from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.plugins.hook_registry import HookType

from raas_patches.active import config_of
from raas_patches.seam import Seam
from raas_sglang.exchange import CHOICE_KEY
from raas_sglang.life.options import parse_options

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager


def validate_one_request(self: "TokenizerManager", obj: Any, input_ids: list[int]) -> None:
    """Before `_validate_one_request`: a `ValueError` here is the client's 400."""
    if config_of(self.server_args) is None and isinstance(obj, GenerateReqInput):
        custom_params = obj.sampling_params.get(CHOICE_KEY)
        parse_options(custom_params, None, self.context_len, max_new_tokens=None)


SEAMS = (
    Seam(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager._validate_one_request",
        HookType.BEFORE,
        validate_one_request,
        ("self", "obj", "input_ids"),
        "answers a request for a policy with a 400 where there is none",
        "SGLang refuses unknown custom_params",
        "tests/unit/test_off_is_off.py::test_off_is_off_for_every_function_but_these",
    ),
)
