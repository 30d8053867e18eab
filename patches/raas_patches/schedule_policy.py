"""`sglang.srt.managers.schedule_policy`: admission knows that a bounded request is small.

Why: SGLang reserves `max_new_tokens` for a request, discounts it while the request runs, and
retracts when the guess was wrong. A bounded request needs far less, and exactly that. How: SGLang's
own tests run as ever; the difference between its reservation and ours is an offset beside them.
Remove when: SGLang asks a request how many slots it may take.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sglang.srt.managers import schedule_policy
from sglang.srt.plugins.hook_registry import HookType

from raas_patches.reservation import (
    is_bounded,
    most_slots,
    slots_held,
    slots_to_admit,
    slots_to_grow,
)
from raas_patches.seam import Seam

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.managers.schedule_policy import AddReqResult, PrefillAdder
    from sglang.srt.server_args import ServerArgs


def get_running_request_total_token_offset(
    original: Callable[["PrefillAdder", "Req"], float], self: "PrefillAdder", req: "Req"
) -> float:
    """Around it: what a running bounded request may still take, in full."""
    return slots_to_grow(req, self.page_size) if is_bounded(req) else original(self, req)


def add_one_req(
    original: Callable[..., "AddReqResult"],
    self: "PrefillAdder",
    req: "Req",
    *args: Any,
    **kwargs: Any,
) -> "AddReqResult":
    """Around it: a bounded request is admitted if all that it can come to hold is free."""
    running = self.running_batch.reqs if self.running_batch is not None else []
    bounded = any(map(is_bounded, (req, *running, *self.can_run_list)))
    if not bounded and not self.preempt_list:
        return original(self, req, *args, **kwargs)
    params = req.sampling_params
    ignore_eos, before = params.ignore_eos, self.rem_total_token_offset
    needed = _needed(self, req)
    self.rem_total_token_offset += needed - _needed_by_sglang(self, req)
    # Without a radix tree SGLang looks ahead for requests that ignore EOS, as if all requests grew
    # until they end. Bounded ones do not, so where any is around, each is admitted by itself. So is
    # a request for which others were interrupted: they would be lost if it were not admitted.
    params.ignore_eos = False
    try:
        result = original(self, req, *args, **kwargs)
    finally:
        params.ignore_eos = ignore_eos
    if req not in self.can_run_list:
        self.rem_total_token_offset = before
        return result
    if is_bounded(req):
        self.rem_total_token_offset = before + needed
    return self.budget_state()


def add_chunked_req(
    original: Callable[["PrefillAdder", "Req"], "Req | None"], self: "PrefillAdder", req: "Req"
) -> "Req | None":
    """Around it: the rest of a prompt in chunks keeps what the request was admitted with."""
    before = self.rem_total_token_offset
    rest = original(self, req)
    if is_bounded(req):
        self.rem_total_token_offset = before + slots_to_admit(req, self.page_size)
    return rest


def preempt_to_schedule(
    original: Callable[["PrefillAdder", "Req", "ServerArgs"], bool],
    self: "PrefillAdder",
    req: "Req",
    server_args: "ServerArgs",
) -> bool:
    """Around it: interrupting a bounded request gains what it holds, not what it may still take.

    SGLang forgets who was interrupted for a request that then is not admitted, so the request must
    be sure to fit: its whole need counts, as if the tree held nothing of it.
    """
    estimate, interrupted = self._get_running_request_total_token_offset, len(self.preempt_list)
    held = {r: slots_held(r, self.page_size) for r in self.running_batch.reqs if is_bounded(r)}
    more = _need_at_most(self, req) + 1 - _need_in_preemption(req)
    self.rem_total_token_offset += more
    self._get_running_request_total_token_offset = lambda r: estimate(r) + held.get(r, 0)
    try:
        return original(self, req, server_args)
    finally:
        del self._get_running_request_total_token_offset
        gained = sum(held.get(r, 0) for r in self.preempt_list[interrupted:])
        self.rem_total_token_offset += gained - more


def _need_at_most(adder: "PrefillAdder", req: "Req") -> int:
    """Slots that are enough to admit a request, whatever the tree holds of it."""
    if is_bounded(req):
        return int(most_slots(req, adder.page_size) + adder.page_size)
    text_len = len(req.origin_input_ids) + len(req.output_ids)
    return int(text_len + _new_tokens(req, len(req.output_ids)) + adder.page_size)


def _need_in_preemption(req: "Req") -> int:
    """What `preempt_to_schedule` compares with the free slots."""
    extend_len: int = len(req.full_untruncated_fill_ids) - len(req.prefix_indices)
    return extend_len + _new_tokens(req)


def _needed(adder: "PrefillAdder", req: "Req") -> int:
    """Slots that must be free to admit a request."""
    if is_bounded(req):
        return slots_to_admit(req, adder.page_size)
    return _needed_by_sglang(adder, req)


def _needed_by_sglang(adder: "PrefillAdder", req: "Req") -> int:
    """What `add_one_req` compares with the free slots."""
    extend_len = len(req.full_untruncated_fill_ids) - len(req.prefix_indices)
    return int(extend_len + _new_tokens(req, len(req.output_ids)) + adder.page_size)


def _new_tokens(req: "Req", generated: int = 0) -> int:
    """Tokens that SGLang expects a request to generate."""
    left = max(req.sampling_params.max_new_tokens - generated, 0)
    return int(min(left, schedule_policy.CLIP_MAX_NEW_TOKENS))


_PATH = "sglang.srt.managers.schedule_policy.PrefillAdder."
_UNTIL = "SGLang asks a request how many slots it may take"
SEAMS = (
    Seam(
        _PATH + "_get_running_request_total_token_offset",
        HookType.AROUND,
        get_running_request_total_token_offset,
        ("self", "req"),
        "keeps free what running bounded requests may still take",
        _UNTIL,
    ),
    Seam(
        _PATH + "add_one_req",
        HookType.AROUND,
        add_one_req,
        ("self", "req", "has_chunked_req", "truncation_align_size"),
        "reserves prompt and budget of a bounded request in full",
        _UNTIL,
    ),
    Seam(
        _PATH + "add_chunked_req",
        HookType.AROUND,
        add_chunked_req,
        ("self", "req"),
        "keeps the reservation while the prompt is prefilled in chunks",
        _UNTIL,
    ),
    Seam(
        _PATH + "preempt_to_schedule",
        HookType.AROUND,
        preempt_to_schedule,
        ("self", "req", "server_args"),
        "lets a request of higher priority take a saturated one's memory",
        _UNTIL,
    ),
)
