"""`sglang.srt.model_executor.forward_batch_info`: decode attention gets resident lengths.

Why: attention reads the slots that a row holds, not the text. How: once positions were derived from
the logical lengths, `seq_lens` serves nothing but attention, so it becomes the resident lengths, on
the device and on the host, for eager passes and CUDA graphs alike. Remove when: SGLang keeps the
two lengths apart.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sglang.srt.plugins.hook_registry import HookType

from raas_patches.seam import Seam

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner


def init_new(
    original: Callable[..., "ForwardBatch"],
    cls: type,
    batch: "ScheduleBatch",
    model_runner: "ModelRunner",
    **kwargs: Any,
) -> "ForwardBatch":
    """Around `ForwardBatch.init_new`: two lengths where SGLang has one."""
    forward_batch = original(cls, batch, model_runner, **kwargs)
    if forward_batch.forward_mode.is_decode():
        state = model_runner.token_to_kv_pool.state
        requests = batch.req_pool_indices_cpu
        state.begin_step(requests)
        lens = state.resident_lens(requests, forward_batch.seq_lens_cpu)
        forward_batch.seq_lens_cpu = lens
        forward_batch.seq_lens_sum = int(lens.sum())
        forward_batch.seq_lens = state.resident_lens(
            forward_batch.req_pool_indices, forward_batch.seq_lens
        )
    return forward_batch


SEAMS = (
    Seam(
        "sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new",
        HookType.AROUND,
        init_new,
        (
            "batch",
            "model_runner",
            "capture_hidden_mode",
            "return_hidden_states_before_norm",
        ),
        "gives decode attention the resident lengths",
        "SGLang keeps logical and resident length apart",
    ),
)
