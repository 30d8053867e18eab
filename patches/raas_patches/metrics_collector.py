"""`sglang.srt.observability.metrics_collector`: our gauges are set when SGLang sets its own.

Why: one scrape must not mix two moments, and an idle scheduler must go back to zero. How: SGLang
calls `log_stats` at its own cadence after decode steps, prefills and when idle. With `stat_loggers`
no hook would be needed, but it has one class for each role, which is the user's to choose. Remove
when: SGLang lets plugins add metrics.
"""

from typing import TYPE_CHECKING

from sglang.srt.plugins.hook_registry import HookType

from raas_patches.seam import Seam

if TYPE_CHECKING:
    from sglang.srt.observability.metrics_collector import (
        SchedulerMetricsCollector,
        SchedulerStats,
    )


def log_stats(_: None, self: "SchedulerMetricsCollector", stats: "SchedulerStats") -> None:
    """After `log_stats`: what the running requests hold, by policy."""
    self.raas.log_stats()


SEAMS = (
    Seam(
        "sglang.srt.observability.metrics_collector.SchedulerMetricsCollector.log_stats",
        HookType.AFTER,
        log_stats,
        ("self", "stats"),
        "sets our gauges when SGLang sets its own",
        "SGLang lets plugins add metrics",
        "tests/server/test_observability.py::test_gauges_are_what_the_log_line_says_and_go_back_to_zero",
    ),
)
