"""`scheduler_components.new_token_ratio_tracker`: a guess about dense requests alone.

Why: after a retraction SGLang guesses from all running requests which share of `max_new_tokens`
they will use. Bounded ones need no guess, and their `max_new_tokens` is far larger than what they
hold. How: they are left out. Remove when: SGLang asks a request how many slots it may take.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sglang.srt.plugins.hook_registry import HookType

from raas_patches.seam import Seam
from raas_sglang.life.reservation import is_bounded

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req


def estimate_new_token_ratio_after_retract(
    original: Callable[[Sequence["Req"]], float], reqs: Sequence["Req"]
) -> float:
    """Around it: guesses from the dense requests, or from all if none is left."""
    return original([req for req in reqs if not is_bounded(req)] or reqs)


SEAMS = (
    Seam(
        "sglang.srt.managers.scheduler_components.new_token_ratio_tracker.NewTokenRatioTracker."
        "estimate_new_token_ratio_after_retract",
        HookType.AROUND,
        estimate_new_token_ratio_after_retract,
        ("reqs",),
        "leaves bounded requests out of the guess about dense ones",
        "SGLang asks a request how many slots it may take",
        "tests/memory/test_admission.py::test_only_dense_requests_are_guessed_about",
    ),
)
