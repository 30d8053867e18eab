"""`sglang.srt.managers.schedule_batch`: two lengths where SGLang has one.

Why: SGLang takes the length of the text for the number of slots. A saturated request has a logical
length that grows on and a resident length that does not. How: each request carries a record of
both, and the hooks ask it. Remove when: SGLang keeps the two apart.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sglang.srt.plugins.hook_registry import HookType
from sglang.srt.runtime_context import get_server_args, process_model_config

from raas_patches.active import required_config
from raas_patches.seam import Seam
from raas_sglang.life.options import admitted_options
from raas_sglang.life.request import RequestState
from raas_sglang.life.reservation import is_bounded
from raas_sglang.life.step import growing

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch


def req_init(_: None, self: "Req", *args: Any, **kwargs: Any) -> None:
    """After `Req.__init__`: attaches the request's options and progress as ``req.raas``."""
    config, context_len = required_config(get_server_args()), process_model_config().context_len
    input_len = len(self.origin_input_ids)
    options, problem = admitted_options(self.sampling_params, config, context_len, input_len)
    self.raas = RequestState(options, input_len)
    if problem:
        self.set_finish_with_abort(problem)


def set_finish_with_abort(
    original: Callable[..., None], self: "Req", *args: Any, **kwargs: Any
) -> None:
    """Around it: keeps the first reason; later checks see the one token left of the input.

    What else it does is due each time: it drops a grammar that came, or failed, since the first.
    """
    first = self.to_finish
    original(self, *args, **kwargs)
    if first is not None:
        self.to_finish = first
    self.raas.arrive(len(self.origin_input_ids))


def refresh_fill_ids(original: Callable[["Req"], None], self: "Req") -> None:
    """Around it: a retracted request is prefilled with what it may hold, P + L tokens.

    SGLang calls it for a request that ends as well; what is left out was decided when it was
    retracted.
    """
    if self.raas.skipped_len:
        self.full_untruncated_fill_ids = self.raas.kept(self.origin_input_ids + self.output_ids)
    else:
        original(self)


def reset_for_retract(_: None, self: "Req") -> None:
    """After it: decides what the request gives up by being prefilled again."""
    self.raas.retract(len(self.origin_input_ids) + len(self.output_ids))


def compute_max_prefix_len(
    original: Callable[["Req", int], int], self: "Req", input_len: int
) -> int:
    """Around it: a retracted request takes no generated tokens from the tree, to overwrite them."""
    return int(self.raas.matchable_len(original(self, input_len)))


def prepare_for_decode(_: None, self: "ScheduleBatch") -> None:
    """After it: no state of linear attention is kept for the tree, once that takes no more.

    SGLang would hold the logical length of the state against the slots of the request. The device's
    mask stays: what it still lets be written no length names.
    """
    if self.mamba_track_mask_cpu is None:
        return
    for mask, ends in (
        (self.mamba_track_mask_cpu, [req.raas.has_overwritten for req in self.reqs]),
        (self.mamba_track_mask_next_cpu, [req.raas.is_saturated for req in self.reqs]),
    ):
        if mask is not None:
            mask[:] = [kept and not ended for kept, ended in zip(mask, ends, strict=True)]


def new_tokens_required_next_decode(
    original: Callable[..., int],
    self: "ScheduleBatch",
    selected_indices: list[int] | None = None,
) -> int:
    """Around it: a saturated request needs none."""
    return original(self, growing(self.reqs, selected_indices))


def get_decode_retraction_order(order: list[int], reqs: list["Req"]) -> list[int]:
    """After it: bounded requests are kept longest; the last in the order is retracted first."""
    return sorted(order, key=lambda i: not is_bounded(reqs[i]))


_PATH = "sglang.srt.managers.schedule_batch."
_UNTIL = "SGLang keeps logical and resident length apart"
SEAMS = (
    Seam(
        _PATH + "Req.__init__",
        HookType.AFTER,
        req_init,
        None,
        "holds policy, budget and progress of a request",
        "SGLang lets plugins attach state to a request",
        "tests/server/test_budget.py::test_resident_length_stops_at_the_budget",
    ),
    Seam(
        _PATH + "Req.set_finish_with_abort",
        HookType.AROUND,
        set_finish_with_abort,
        ("self", "error_msg", "status_code", "err_type"),
        "keeps the reason for which a request was refused",
        "SGLang stops checking a request that it has refused",
        "tests/server/test_small_pool.py::test_a_refusal_comes_before_the_answer",
    ),
    Seam(
        _PATH + "Req.reset_for_retract",
        HookType.AFTER,
        reset_for_retract,
        ("self",),
        "decides what a retracted request is prefilled with",
        _UNTIL,
        "tests/memory/test_admission.py::test_a_retraction_beyond_the_pool_keeps_the_last_tokens",
    ),
    Seam(
        _PATH + "Req.refresh_fill_ids",
        HookType.AROUND,
        refresh_fill_ids,
        ("self",),
        "prefills a retracted request within its reservation",
        _UNTIL,
        "tests/memory/test_admission.py::test_a_retraction_beyond_the_pool_keeps_the_last_tokens",
    ),
    Seam(
        _PATH + "Req._compute_max_prefix_len",
        HookType.AROUND,
        compute_max_prefix_len,
        ("self", "input_len"),
        "keeps a retracted request off shared generated tokens",
        _UNTIL,
        "tests/memory/test_memory_model.py::test_random_operations_keep_the_invariants",
    ),
    Seam(
        _PATH + "ScheduleBatch.prepare_for_decode",
        HookType.AFTER,
        prepare_for_decode,
        ("self",),
        "keeps no state of linear attention of a text that the tree takes no more of",
        _UNTIL,
        "tests/server/test_linear_attention.py::test_dense_identity",
    ),
    Seam(
        _PATH + "ScheduleBatch.new_tokens_required_next_decode",
        HookType.AROUND,
        new_tokens_required_next_decode,
        ("self", "selected_indices"),
        "asks for no memory for saturated requests",
        _UNTIL,
        "tests/memory/test_admission.py::test_memory_runs_out_for_dense_neighbours_alone",
    ),
    Seam(
        _PATH + "ScheduleBatch._get_decode_retraction_order",
        HookType.AFTER,
        get_decode_retraction_order,
        ("reqs",),
        "retracts dense requests, whose memory is a guess, first",
        "SGLang asks a request how many slots it may take",
        "tests/memory/test_admission.py::test_memory_runs_out_for_dense_neighbours_alone",
    ),
)
