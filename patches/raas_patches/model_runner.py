"""`sglang.srt.model_executor.model_runner`: the position of the token that a prefill samples.

Why: SGLang derives it from the length of what was prefilled, and mixes it with `sampling_seed`. The
prefill of a retracted request leaves tokens out. How: the lengths are logical while the sampler
runs.
Remove when: SGLang keeps logical and resident length apart.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from sglang.srt.plugins.hook_registry import HookType

from raas_patches.seam import Seam

if TYPE_CHECKING:
    import torch
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner


def sample(
    original: Callable[..., "torch.Tensor"],
    self: "ModelRunner",
    logits_output: "LogitsProcessorOutput",
    forward_batch: "ForwardBatch",
) -> "torch.Tensor":
    """Around it: nothing else of it reads the lengths, and attention has run."""
    skipped = getattr(forward_batch, "raas_skipped_lens", None)
    if skipped is None:
        return original(self, logits_output, forward_batch)
    resident_lens = forward_batch.seq_lens
    forward_batch.seq_lens = resident_lens + skipped
    try:
        return original(self, logits_output, forward_batch)
    finally:
        forward_batch.seq_lens = resident_lens


SEAMS = (
    Seam(
        "sglang.srt.model_executor.model_runner.ModelRunner.sample",
        HookType.AROUND,
        sample,
        ("self", "logits_output", "forward_batch"),
        "samples at logical positions, which sampling_seed is mixed with",
        "SGLang keeps logical and resident length apart",
        "tests/unit/test_forward_batch_info.py::test_the_next_token_is_sampled_where_it_stands_in_the_text",
    ),
)
