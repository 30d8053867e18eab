"""SGLang's scheduler without its processes: every part that is not given to it is off."""

from types import SimpleNamespace
from typing import Any

from sglang.srt.disaggregation.utils import DisaggregationMode
from sglang.srt.managers import scheduler
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm


class _Silent:
    """Stands for metrics, streams and channels: takes any call, says nothing, is empty."""

    num_generated_tokens = forward_ct_decode = 0

    def __getattr__(self, name: str) -> "_Silent":
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> None: ...

    def __len__(self) -> int:
        return 0


def _first(batch: Any, **_: Any) -> Any:
    return batch


_SILENT = _Silent()
_MUTE = (
    *("ipc_channels", "metrics_reporter", "output_streamer", "load_inquirer"),
    *("kv_events_publisher", "publish_load_snapshot", "load_publisher"),
    *("_record_step_counters", "grammar_manager", "dllm_manager", "tp_worker"),
)
_PARTS = {
    "is_generation": True,
    "spec_algorithm": SpeculativeAlgorithm.NONE,
    "disaggregation_mode": DisaggregationMode.NULL,
    "ps": SimpleNamespace(pp_size=1),
    "schedule_policy": "fcfs",
    "priority_scheduling_preemption_threshold": 0,
    "dp_attn_adapter": SimpleNamespace(
        maybe_prepare_mlp_sync_batch=_first, maybe_convert_decode_to_extend=_first
    ),
    "ngram_embedding_manager": SimpleNamespace(prepare_for_forward=_first),
    **dict.fromkeys(_MUTE, _SILENT),
}


class SchedulerLoop(scheduler.Scheduler):
    """SGLang's scheduler with the parts that it is given; every other feature is off."""

    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(_PARTS, **parts)
        self.init_running_status()
        config = self.model_config
        # Else SGLang imports every model that it knows, to see which of them this one is.
        config._resolved_model_arch = config.hf_config.architectures[0]
        self.init_chunked_prefill()
        self.__dict__.update(parts)
        self.init_schedule_policy()
        self.init_pool_stats_observer()
        self.init_invariant_checker()
        self.init_batch_result_processor()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None
