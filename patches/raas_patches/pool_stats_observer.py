"""`sglang.srt.managers.scheduler_components.pool_stats_observer`: our part of the decode log line.

Why: "#token" does not say what was given up for it. How: SGLang builds the line from parts that
`PoolStats` returns; the observer that makes it knows the running batch. Remove when: SGLang lets
plugins add to the line.
"""

from typing import TYPE_CHECKING

from sglang.srt.plugins.hook_registry import HookType

from raas_patches.seam import Seam
from raas_sglang.metrics import log_part, usage_of

if TYPE_CHECKING:
    from sglang.srt.managers.scheduler_components.pool_stats_observer import (
        PoolStats,
        SchedulerPoolStatsObserver,
    )


def get_pool_stats(result: "PoolStats", self: "SchedulerPoolStatsObserver") -> None:
    """After `get_pool_stats`: notes whose requests the line is about."""
    result.get_running_batch = self.get_running_batch


def get_decode_usage_msg_parts(result: list[str], self: "PoolStats") -> list[str]:
    """After `get_decode_usage_msg_parts`: adds requests by policy, both lengths and budget use.

    Like SGLang's "#token", and unlike its "#running-req", without what finished in this step.
    """
    usages = usage_of(req.raas for req in self.get_running_batch().reqs)
    return [*result, log_part(usages)]


_PATH = "sglang.srt.managers.scheduler_components.pool_stats_observer."
_WHY = "says in the log line of a decode batch what requests hold and gave up"
_UNTIL = "SGLang lets plugins add to the log line"
SEAMS = (
    Seam(
        _PATH + "SchedulerPoolStatsObserver.get_pool_stats",
        HookType.AFTER,
        get_pool_stats,
        ("self",),
        _WHY,
        _UNTIL,
    ),
    Seam(
        _PATH + "PoolStats.get_decode_usage_msg_parts",
        HookType.AFTER,
        get_decode_usage_msg_parts,
        ("self",),
        _WHY,
        _UNTIL,
    ),
)
