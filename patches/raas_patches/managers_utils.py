"""`sglang.srt.managers.utils`: an input that is longer than the pool.

Why: SGLang refuses such an input, since it would compute all of it. Of a request with
``kv_prompt_len`` only the prompt and the last L tokens are computed. How: only the context length
limits such a request. Remove when: SGLang asks a request how many slots it may take.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from sglang.srt.plugins.hook_registry import HookType
from sglang.srt.runtime_context import process_model_config

from raas_patches.seam import Seam

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

# SGLang keeps so many tokens of the context free.
_SPARE_TOKENS = 6


def validate_input_length(
    original: Callable[["Req", int, bool], str | None],
    req: "Req",
    max_req_input_len: int,
    allow_auto_truncate: bool,
) -> str | None:
    """Around it: `room` has checked already what such a request holds.

    Its length is final then: images were expanded, and what is too long was cut.
    """
    options = req.raas.options
    if options.is_bounded and options.prompt_len is not None:
        max_req_input_len = process_model_config().context_len - _SPARE_TOKENS
    problem = original(req, max_req_input_len, allow_auto_truncate)
    req.raas.arrive(len(req.origin_input_ids))
    return problem


SEAMS = (
    Seam(
        "sglang.srt.managers.utils.validate_input_length",
        HookType.AROUND,
        validate_input_length,
        ("req", "max_req_input_len", "allow_auto_truncate"),
        "lets an answer that is longer than the pool be sent again",
        "SGLang asks a request how many slots it may take",
        "tests/server/test_partial_rollouts.py::test_rounds_of_an_answer_that_outgrows_the_pool",
    ),
)
