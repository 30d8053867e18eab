"""`sglang.srt.managers.scheduler_components.metrics_reporter`: what requests hold and gave up.

Why: SGLang's counters know nothing of eviction, and "#token" in its log line does not say how many
tokens were given up. How: SGLang calls the reporter in every decode step. Our metrics hang on the
collector that it holds, and `PoolStats`, which writes a part of the line, adds ours. Remove when:
SGLang lets plugins add metrics and parts of the line.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sglang.srt.managers.scheduler_components.pool_stats_observer import PoolStats
from sglang.srt.plugins.hook_registry import HookType

from raas_patches.seam import Seam
from raas_sglang.life.request import RequestState
from raas_sglang.metrics import EvictionMetrics, log_part, usage_of

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.managers.scheduler_components.metrics_reporter import SchedulerMetricsReporter


def post_init(_: None, self: "SchedulerMetricsReporter") -> None:
    """After `__post_init__`: puts our metrics beside SGLang's, with SGLang's labels."""

    def running() -> Iterator[RequestState]:
        return (req.raas for req in self.scheduler.running_batch.reqs)

    PoolStats.running = staticmethod(running)  # a process has one scheduler
    if self.metrics_collector is not None:
        self.metrics_collector.raas = EvictionMetrics(self.metrics_collector.labels, running)


def report_decode_stats(
    self: "SchedulerMetricsReporter",
    can_run_cuda_graph: bool,
    running_batch: "ScheduleBatch | None" = None,
    **_: Any,
) -> None:
    """Before `report_decode_stats`, which is called at every step and logs at some."""
    if self.current_scheduler_metrics_enabled:
        batch = running_batch or self.scheduler.running_batch
        self.metrics_collector.raas.count(req.raas for req in batch.reqs)


def get_decode_usage_msg_parts(result: list[str], self: PoolStats) -> list[str]:
    """After `get_decode_usage_msg_parts`: adds requests by policy, both lengths and budget use.

    Like SGLang's "#token", and unlike its "#running-req", without what finished in this step.
    """
    return [*result, log_part(usage_of(self.running()))]


_PATH = "sglang.srt.managers.scheduler_components."
_REPORTER = _PATH + "metrics_reporter.SchedulerMetricsReporter."
_UNTIL = "SGLang lets plugins add metrics"
SEAMS = (
    Seam(
        _REPORTER + "__post_init__",
        HookType.AFTER,
        post_init,
        ("self",),
        "puts our gauges and counters beside SGLang's",
        _UNTIL,
        "tests/server/test_observability.py::test_counters_are_what_the_answers_report",
    ),
    Seam(
        _REPORTER + "report_decode_stats",
        HookType.BEFORE,
        report_decode_stats,
        ("self", "can_run_cuda_graph", "running_batch", "num_generated_tokens"),
        "counts what each decode step gave up",
        _UNTIL,
        "tests/server/test_observability.py::test_counters_are_what_the_answers_report",
    ),
    Seam(
        _PATH + "pool_stats_observer.PoolStats.get_decode_usage_msg_parts",
        HookType.AFTER,
        get_decode_usage_msg_parts,
        ("self",),
        "says in the log line of a decode batch what requests hold and gave up",
        "SGLang lets plugins add to the log line",
        "tests/server/test_observability.py::test_gauges_are_what_the_log_line_says_and_go_back_to_zero",
    ),
)
