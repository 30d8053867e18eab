"""SGLang's scheduler without its processes: every part that a simulation does not give is off."""

from typing import Any

from sglang.srt.managers import scheduler


class Silent:
    """Stands for metrics, streams and channels: takes any call, says nothing, is empty."""

    num_generated_tokens = forward_ct_decode = 0

    def __getattr__(self, name: str) -> "Silent":
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        return None

    def __len__(self) -> int:
        return 0


class SchedulerLoop(scheduler.Scheduler):
    """SGLang's scheduler with the parts that a simulation gives it; every other feature is off."""

    def __init__(self, **parts: Any) -> None:
        vars(self).update(parts)

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


SILENT = Silent()
MUTE = (
    *("ipc_channels", "metrics_reporter", "output_streamer", "load_inquirer"),
    *("kv_events_publisher", "publish_load_snapshot", "_record_step_counters"),
    *("grammar_manager", "dllm_manager", "tp_worker"),
)
