"""`sglang.srt.managers.scheduler_components.output_streamer`: each message carries the report.

Why: what happened to a request is known where it is scheduled. How: SGLang asks a subclass for one
value for each request whose tokens it sends. Remove when: SGLang lets plugins add to messages.
"""

from typing import TYPE_CHECKING, Any

from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer
from sglang.srt.plugins.hook_registry import HookType

from raas_patches.seam import Seam

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.managers.scheduler import Scheduler

REPORT_KEY = "raas"


class ReportingStreamer(SchedulerOutputStreamer):
    """Sends the report of a request beside its tokens; `tokenizer_manager` unpacks it."""

    has_additional_customized_info = True

    def build_additional_customized_info(self, reqs: list["Req"]) -> dict[str, list[Any]]:
        """The report of each request as it is now."""
        return {REPORT_KEY: [req.raas.report() for req in reqs]}


def get_output_streamer_class(_: type, self: "Scheduler") -> type:
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
