"""`sglang.srt.managers.scheduler_components.metrics_reporter`: counts what each step gave up.

Why: SGLang's counters know nothing of eviction. How: the reporter is told of every decode step and
holds SGLang's collector, which carries ours. Remove when: SGLang lets plugins add metrics.
"""

from typing import TYPE_CHECKING

from sglang.srt.plugins.hook_registry import HookType

from raas_patches.seam import Seam
from raas_sglang.metrics import EvictionMetrics

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.managers.scheduler_components.metrics_reporter import SchedulerMetricsReporter


def post_init(_: None, self: "SchedulerMetricsReporter") -> None:
    """After `__post_init__`: puts our metrics beside SGLang's, with SGLang's labels."""
    if self.metrics_collector is not None:
        self.metrics_collector.raas = EvictionMetrics(
            self.metrics_collector.labels,
            lambda: (req.raas for req in self.scheduler.running_batch.reqs),
        )


def report_decode_stats(
    self: "SchedulerMetricsReporter",
    can_run_cuda_graph: bool,
    running_batch: "ScheduleBatch | None" = None,
    num_correct_drafts: int = 0,
) -> None:
    """Before `report_decode_stats`, which is called at every step and logs at some."""
    if self.current_scheduler_metrics_enabled:
        batch = running_batch or self.scheduler.running_batch
        self.metrics_collector.raas.count(req.raas for req in batch.reqs)


_PATH = "sglang.srt.managers.scheduler_components.metrics_reporter.SchedulerMetricsReporter."
_UNTIL = "SGLang lets plugins add metrics"
SEAMS = (
    Seam(
        _PATH + "__post_init__",
        HookType.AFTER,
        post_init,
        ("self",),
        "puts our gauges and counters beside SGLang's",
        _UNTIL,
    ),
    Seam(
        _PATH + "report_decode_stats",
        HookType.BEFORE,
        report_decode_stats,
        ("self", "can_run_cuda_graph", "running_batch", "num_correct_drafts"),
        "counts what each decode step gave up",
        _UNTIL,
    ),
)
