"""`sglang.srt.entrypoints.engine`: the parent hears from each scheduler that the policy is on.

Why: a scheduler process that did not load the plugin would serve every request dense and say
nothing. How: ours add a word to what they report when they are ready. Remove when: SGLang stops a
process whose plugin failed.
"""

from typing import Any

from sglang.srt.managers.data_parallel_controller import SCHEDULER_PIDS_ARG
from sglang.srt.plugins.hook_registry import HookType

from raas_patches.seam import Seam


def wait_for_scheduler_ready(infos: list[dict[str, Any]], *_: Any) -> list[dict[str, Any]]:
    """After `_wait_for_scheduler_ready`: refuses a scheduler that runs without the policy.

    A data-parallel controller reports for its schedulers in words of its own; each of them has
    verified itself.

    Raises:
        RuntimeError: a scheduler did not load the plugin.
    """
    for index, info in enumerate(infos):
        if "kv_policy" not in info and SCHEDULER_PIDS_ARG not in info:
            raise RuntimeError(
                f"--kv-policy must run in every scheduler process, scheduler {index} did not load "
                "the plugin; start all processes in one environment, with one SGLANG_PLUGINS"
            )
    return infos


SEAMS = (
    Seam(
        "sglang.srt.entrypoints.engine._wait_for_scheduler_ready",
        HookType.AFTER,
        wait_for_scheduler_ready,
        ("scheduler_pipe_readers", "scheduler_procs"),
        "refuses a scheduler that did not load the plugin",
        "SGLang stops a process whose plugin failed",
    ),
)
