"""Admission that knows what a bounded request can come to hold.

SGLang reserves `max_new_tokens` for a request, discounts it while the request runs, and retracts
when the guess was wrong. A bounded request needs far less, and exactly that.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sglang.srt.managers import schedule_policy
from sglang.srt.managers.schedule_policy import AddReqResult, PrefillAdder

from raas_sglang.life.reservation import (
    is_bounded,
    most_slots,
    slots_held,
    slots_to_admit,
    slots_to_grow,
)

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req


class ReservingPrefillAdder(PrefillAdder):
    """SGLang's admission, which reserves prompt and budget of a bounded request in full."""

    # What preempting each bounded request gives back; filled only while requests are chosen for it.
    _held: Mapping["Req", int] = {}

    def _get_running_request_total_token_offset(self, req: "Req") -> float:
        if not is_bounded(req):
            return float(super()._get_running_request_total_token_offset(req))
        return slots_to_grow(req, self.page_size) + self._held.get(req, 0)

    def add_one_req(self, req: "Req", *args: Any, **kwargs: Any) -> AddReqResult:
        """Admits a request if all that it can come to hold is free.

        Without a radix tree SGLang looks ahead for one that ignores EOS, as if all requests grew
        until they end. Bounded ones do not, and one that may fill the pool would never be admitted.
        """
        params = req.sampling_params
        ignore_eos, params.ignore_eos = params.ignore_eos, False
        try:
            return super().add_one_req(req, *args, **kwargs)
        finally:
            params.ignore_eos = ignore_eos

    def _check_prefill_budget(self, req: "Req", *, total_tokens: int, **kwargs: Any) -> Any:
        if is_bounded(req):
            total_tokens = slots_to_admit(req, self.page_size)
        return super()._check_prefill_budget(req, total_tokens=total_tokens, **kwargs)

    def _commit_prefill_admission(self, req: "Req", *args: Any) -> None:
        before = self.memory_budget.total_offset
        super()._commit_prefill_admission(req, *args)
        self._reserve(req, before)

    def add_chunked_req(self, req: "Req") -> "Req | None":
        """The rest of a prompt in chunks keeps what the request was admitted with."""
        before = self.memory_budget.total_offset
        rest = super().add_chunked_req(req)
        self._reserve(req, before)
        return rest

    def _reserve(self, req: "Req", offset: int) -> None:
        """Puts our reservation of a bounded request in place of SGLang's."""
        if is_bounded(req):
            self.memory_budget.total_offset = offset + slots_to_admit(req, self.page_size)

    def preempt_to_schedule(self, req: "Req") -> bool:
        """Preempts requests of lower priority only where the request is then sure to fit.

        A bounded one gives back what it holds besides what it may still take. The whole need of the
        request counts, as if the tree held nothing of it.
        """
        budget, preempted = self.memory_budget, len(self.preempt_list)
        self._held = held = {
            r: slots_held(r, self.page_size) for r in self.running_batch.reqs if is_bounded(r)
        }
        more = self._need_at_most(req) + 1 - self._need_in_preemption(req)
        budget.total_offset += more
        try:
            return bool(super().preempt_to_schedule(req))
        finally:
            self._held = {}
            gained = sum(held.get(r, 0) for r in self.preempt_list[preempted:])
            budget.total_offset += gained - more

    def _need_at_most(self, req: "Req") -> int:
        """Slots that are enough to admit a request, whatever the tree holds of it."""
        if is_bounded(req):
            return int(most_slots(req, self.page_size) + self.page_size)
        return int(len(req.origin_input_ids) + _new_tokens(req) + self.page_size)

    def _need_in_preemption(self, req: "Req") -> int:
        """What SGLang compares with the free slots when it preempts."""
        new_tokens = min(req.sampling_params.max_new_tokens, schedule_policy.CLIP_MAX_NEW_TOKENS)
        return int(len(req.full_untruncated_fill_ids) - req.prefix_len + new_tokens)


def _new_tokens(req: "Req") -> int:
    """Tokens that SGLang expects a dense request to hold beside its prompt."""
    generated = len(req.output_ids)
    left = max(req.sampling_params.max_new_tokens - generated, 0)
    return int(generated + min(left, schedule_policy.CLIP_MAX_NEW_TOKENS))
