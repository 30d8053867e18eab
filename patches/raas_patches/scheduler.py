"""`sglang.srt.managers.scheduler`: which requests are admitted, refused, and kept waiting.

Why: SGLang limits `max_new_tokens` by the pool, but a bounded request may generate more than the
pool holds. A prompt close to the pool's size is left with no token to generate, and waits for ever
for memory. And a retracted request goes back to the queue of those that never ran: the limits of
that queue end it, though it had been admitted; and a request that SGLang ends there, or between two
chunks of a prompt, is answered without prompt length, report and the tokens that were not sent yet.
And a hierarchical cache that started without a storage backend can be given one later. And linear
attention cannot be computed again without the tokens that a request gave up. How: admission
reserves what a bounded request can hold, only the context length limits its tokens, and whatever
can never be admitted is refused. The server's process has refused most of that already; only here
are the tokens of a session and of images known. The limits of the queue see new requests alone,
whatever is ended is answered as one that runs, no storage backend is attached, and a request that
would leave tokens out of linear attention is not put into the queue. Remove when: SGLang asks a
request how many slots it may take, and keeps retracted requests apart from new ones; and when
storage backends are tested.
"""

from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from sglang.srt.managers.io_struct import AbortReq, AttachHiCacheStorageReqOutput
from sglang.srt.managers.schedule_batch import FINISH_ABORT
from sglang.srt.plugins.hook_registry import HookType

from raas_patches.seam import Seam
from raas_sglang.life.admission import ReservingPrefillAdder
from raas_sglang.life.reservation import is_bounded
from raas_sglang.life.room import Room
from raas_sglang.support.settings import HOST_ALONE

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.managers.scheduler import Scheduler


def get_prefill_adder_class(_: type, self: "Scheduler") -> type[ReservingPrefillAdder]:
    """After `get_prefill_adder_class`: ours reserves what bounded requests can hold."""
    return ReservingPrefillAdder


def init_req_max_new_tokens(
    original: Callable[["Scheduler", "Req"], None], self: "Scheduler", req: "Req"
) -> None:
    """Around it: a bounded request is limited by the context length; what cannot fit is refused."""
    params, input_len = req.sampling_params, len(req.origin_input_ids)
    asked, asked_min = params.max_new_tokens, params.min_new_tokens
    original(self, req)
    if req.to_finish is not None:
        return
    room = Room(self.max_total_num_tokens, self.page_size, self.model_config.context_len)
    if is_bounded(req):
        cap = self.max_new_tokens_limit or 0
        if cap > 0:
            asked = cap if asked is None else min(asked, cap)
        params.max_new_tokens = asked = room.new_tokens(asked, input_len)
        params.min_new_tokens = min(asked_min, asked)
    problem = room.refusal(req.raas.options, input_len, 1 if asked is None else asked)
    if problem:
        # SGLang leaves one token of the request, and ends it once that is admitted.
        params.max_new_tokens, params.min_new_tokens = 1, 0
        req.set_finish_with_abort(problem)


def send_abort_output(_: Any, self: "Scheduler", abort_req: "AbortReq", req: "Req") -> None:
    """Around `send_abort_output`: the output stream ends a request, with all that it has."""
    reason = abort_req.finished_reason or {}
    req.finished_reason = FINISH_ABORT(
        reason.get("message", "Abort in waiting queue"),
        reason.get("status_code"),
        reason.get("err_type"),
    )
    req.time_stats.set_completion_time()
    self.output_streamer.stream_output([req], req.return_logprob)


def abort_on_queued_limit(
    original: Callable[["Scheduler", "Req"], bool], self: "Scheduler", recv_req: "Req"
) -> bool:
    """Around `_abort_on_queued_limit`: does not turn a retracted request away, nor count it.

    One that would be computed again without what it gave up, which linear attention has seen, ends.
    """
    if recv_req.raas.skipped_len and self.tree_cache.supports_mamba():
        status = None if _has_run(recv_req) else HTTPStatus.BAD_REQUEST
        message = (
            f"a model with linear attention must compute a text whole, got "
            f"{recv_req.raas.skipped_len} generated tokens beyond a budget of "
            f"{recv_req.raas.options.budget}, which would be left out; send the text so far as a "
            "prompt, without kv_prompt_len"
        )
        reason: Any = {"type": "abort", "message": message, "status_code": status}
        recv_req.time_stats.trace_ctx.abort(abort_info=reason)
        self.send_abort_output(AbortReq(rid=recv_req.rid, finished_reason=reason), recv_req)
        return True
    return False if _has_run(recv_req) else _among_new(original, self, recv_req)


def poll_timeout_aborts(
    original: Callable[["Scheduler"], list["AbortReq"]], self: "Scheduler"
) -> list["AbortReq"]:
    """Around `_poll_timeout_aborts`: a retracted request waits as long as it must."""
    return list(_among_new(original, self))


def attach_hicache_storage_wrapped(*_: Any) -> AttachHiCacheStorageReqOutput:
    """Around `attach_hicache_storage_wrapped`: refuses what is refused when the server starts."""
    message = f"no storage backend can be attached with --kv-policy: {HOST_ALONE}"
    return AttachHiCacheStorageReqOutput(success=False, message=message)


def _among_new(original: Callable[..., Any], scheduler: "Scheduler", *args: Any) -> Any:
    """Calls a limit of the queue while only requests that never ran are in it."""
    queue = scheduler.waiting_queue
    if not any(map(_has_run, queue)):
        return original(scheduler, *args)
    scheduler.waiting_queue = [req for req in queue if not _has_run(req)]
    try:
        return original(scheduler, *args)
    finally:
        left = {*scheduler.waiting_queue, *filter(_has_run, queue)}
        scheduler.waiting_queue = [req for req in queue if req in left]


def _has_run(req: "Req") -> bool:
    return bool(req.retraction_count)


_PATH = "sglang.srt.managers.scheduler.Scheduler."
_ASKS = "SGLang asks a request how many slots it may take"
_TELLS = "SGLang keeps retracted requests apart from new ones"
SEAMS = (
    Seam(
        _PATH + "get_prefill_adder_class",
        HookType.AFTER,
        get_prefill_adder_class,
        ("self",),
        "reserves prompt and budget of a bounded request in full",
        _ASKS,
        "tests/memory/test_admission.py::test_a_running_request_keeps_its_reservation",
    ),
    Seam(
        _PATH + "init_req_max_new_tokens",
        HookType.AROUND,
        init_req_max_new_tokens,
        ("self", "req"),
        "lets a bounded request generate more than the pool holds",
        _ASKS,
        "tests/memory/test_admission.py::test_a_request_generates_eight_times_the_pool",
    ),
    Seam(
        _PATH + "send_abort_output",
        HookType.AROUND,
        send_abort_output,
        ("self", "abort_req", "req"),
        "answers a request that is ended between two steps as one that runs",
        "SGLang answers such a request with all that it has",
        "tests/memory/test_admission.py::test_an_aborted_request_is_answered_with_all_that_it_has",
    ),
    Seam(
        _PATH + "_abort_on_queued_limit",
        HookType.AROUND,
        abort_on_queued_limit,
        ("self", "recv_req"),
        "keeps a retracted request in a full queue, or ends one that cannot be computed again",
        _TELLS,
        "tests/unit/test_waiting_queue.py::test_a_retracted_request_is_never_turned_away",
    ),
    Seam(
        _PATH + "_poll_timeout_aborts",
        HookType.AROUND,
        poll_timeout_aborts,
        ("self",),
        "lets a retracted request wait for memory",
        _TELLS,
        "tests/unit/test_waiting_queue.py::test_the_waiting_timeout_ends_new_requests_alone",
    ),
    Seam(
        _PATH + "attach_hicache_storage_wrapped",
        HookType.AROUND,
        attach_hicache_storage_wrapped,
        ("self", "recv_req"),
        "refuses a storage backend that is attached to a running server",
        "storage backends are tested",
        "tests/unit/test_seams.py::test_no_storage_backend_can_be_attached_later",
    ),
)
