"""`sglang.srt.managers.scheduler_components.output_streamer`: each message carries the report.

Why: what happened to a request is known where it is scheduled. How: SGLang asks a subclass for one
value for each request whose tokens it sends, among them the last ones of every request, however it
ended. Remove when: SGLang lets plugins add to messages.
"""

from typing import TYPE_CHECKING, Any

from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer
from sglang.srt.plugins.hook_registry import HookType

from raas_patches.seam import Seam
from raas_sglang.pool import pool_of
from raas_sglang.trace.sampler import TracedRequest

if TYPE_CHECKING:
    from sglang.srt.managers.scheduler import Scheduler

REPORT_KEY = "raas"


class ReportingStreamer(SchedulerOutputStreamer):
    """Sends the report of a request beside its tokens; `tokenizer_manager` unpacks it."""

    has_additional_customized_info = True

    def build_additional_customized_info(self, reqs: list[Req]) -> dict[str, list[Any]]:
        """The report of each request as it is now; a trace is told of those that end."""
        sampler = pool_of(self.tree_cache.token_to_kv_pool_allocator).token_sampler
        if sampler is not None:
            for req in filter(Req.finished, reqs):
                sampler.end(_traced(req), req.finished_reason.to_json()["type"])
        return {REPORT_KEY: [req.raas.report() for req in reqs]}


def _traced(req: Req) -> TracedRequest:
    return TracedRequest(req.rid, req.raas, req.origin_input_ids, req.output_ids_through_stop)


def get_output_streamer_class(_: type, self: "Scheduler") -> type[ReportingStreamer]:
    """After `get_output_streamer_class`."""
    return ReportingStreamer


SEAMS = (
    Seam(
        "sglang.srt.managers.scheduler.Scheduler.get_output_streamer_class",
        HookType.AFTER,
        get_output_streamer_class,
        ("self",),
        "sends what happened to the KV cache beside the tokens",
        "SGLang lets plugins add to the output of a request",
        "tests/server/test_endpoints.py::test_streaming_says_in_every_chunk_what_happened",
    ),
)
