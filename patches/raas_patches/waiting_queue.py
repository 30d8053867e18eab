"""`sglang.srt.managers.scheduler`: what may end a request that waits, and what it answers then.

Why: a retracted request goes back to the queue of those that never ran. There the limits of that
queue end it, though it had been admitted, and an abort answers without prompt length, report and
the tokens that were not sent yet. How: the limits see new requests alone, and an aborted request
ends as a running one does. Remove when: SGLang tells retracted requests from new ones.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sglang.srt.managers.schedule_batch import FINISH_ABORT
from sglang.srt.plugins.hook_registry import HookType

from raas_patches.seam import Seam

if TYPE_CHECKING:
    from sglang.srt.managers.io_struct import AbortReq
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.managers.scheduler import Scheduler


def abort_request(self: "Scheduler", recv_req: "AbortReq") -> None:
    """Before `abort_request`: ends those that wait, with all that they have."""
    queue = self.waiting_queue
    ended = [req for req in queue if recv_req.abort_all or req.rid.startswith(recv_req.rid)]
    if not ended:
        return
    gone = set(ended)
    self.waiting_queue = [req for req in queue if req not in gone]
    for req in ended:
        req.finished_reason = FINISH_ABORT("Abort in waiting queue")
        req.time_stats.set_completion_time()
    self.output_streamer.stream_output(ended, any(req.return_logprob for req in ended))


def abort_on_queued_limit(
    original: Callable[["Scheduler", "Req"], bool], self: "Scheduler", recv_req: "Req"
) -> bool:
    """Around `_abort_on_queued_limit`: a retracted request neither is turned away nor counts."""
    return False if _has_run(recv_req) else _among_new(original, self, recv_req)


def abort_on_waiting_timeout(original: Callable[["Scheduler"], None], self: "Scheduler") -> None:
    """Around `_abort_on_waiting_timeout`: a retracted request waits as long as it must."""
    _among_new(original, self)


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
_UNTIL = "SGLang tells retracted requests from new ones"
SEAMS = (
    Seam(
        _PATH + "abort_request",
        HookType.BEFORE,
        abort_request,
        ("self", "recv_req"),
        "answers a request that is aborted while it waits as one that runs",
        _UNTIL,
    ),
    Seam(
        _PATH + "_abort_on_queued_limit",
        HookType.AROUND,
        abort_on_queued_limit,
        ("self", "recv_req"),
        "keeps a retracted request in a full queue",
        _UNTIL,
    ),
    Seam(
        _PATH + "_abort_on_waiting_timeout",
        HookType.AROUND,
        abort_on_waiting_timeout,
        ("self",),
        "lets a retracted request wait for memory",
        _UNTIL,
    ),
)
