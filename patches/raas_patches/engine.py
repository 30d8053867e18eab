"""`sglang.srt.entrypoints.engine`: what the parent hears from each scheduler when it is ready.

Why: a scheduler process that did not load the plugin would silently serve every request dense; and
a prompt that the pool can never hold must be refused before its answer begins. How: our schedulers
add their policy to what they report, and the tokenizer manager takes the pool's size out of it.
Remove when: SGLang stops a process whose plugin failed, and checks prompts against the pool there.
"""

from typing import TYPE_CHECKING, Any

from sglang.srt.managers.data_parallel_controller import SCHEDULER_PIDS_ARG
from sglang.srt.plugins.hook_registry import HookType

from raas_patches.active import attach_pool_tokens, config_of
from raas_patches.seam import Seam

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager


def set_startup_time(
    tokenizer_manager: "TokenizerManager", scheduler_init_result: Any, startup_tic: float
) -> None:
    """Before `Engine._set_startup_time`: schedulers have the policy; the pool's size is noted.

    SGLang has in hand what they report, and has loaded plugins by then in every process that
    serves. A data-parallel controller reports for its schedulers in words of its own; each of them
    has verified itself.

    Raises:
        RuntimeError: a scheduler did not load the plugin.
    """
    if config_of(tokenizer_manager.server_args) is None:
        return
    infos = scheduler_init_result.scheduler_infos
    for index, info in enumerate(infos):
        if "kv_policy" not in info and SCHEDULER_PIDS_ARG not in info:
            raise RuntimeError(
                f"--kv-policy must run in every scheduler process, scheduler {index} did not load "
                "the plugin; start all processes in one environment, with one SGLANG_PLUGINS"
            )
    attach_pool_tokens(tokenizer_manager, infos[0]["max_total_num_tokens"])


SEAMS = (
    Seam(
        "sglang.srt.entrypoints.engine.Engine._set_startup_time",
        HookType.BEFORE,
        set_startup_time,
        ("tokenizer_manager", "scheduler_init_result", "startup_tic"),
        "refuses a scheduler without the plugin, and notes how many tokens the pool holds",
        "SGLang stops a process whose plugin failed, and checks prompts before it answers",
        "tests/server/test_small_pool.py::test_a_refusal_comes_before_the_answer",
    ),
)
