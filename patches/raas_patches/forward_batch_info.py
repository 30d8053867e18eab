"""`sglang.srt.model_executor.forward_batch_info`: positions of a request that was retracted.

Why: of a retracted request only the prompt and the last L generated tokens are prefilled again, but
they keep their positions in the text. How: in prefill the positions after the prompt move on by the
number of tokens that were left out, before any layer reads them. Remove when: SGLang keeps logical
and resident length apart.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
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
    """Around `ForwardBatch.init_new`: logical positions in prefill."""
    forward_batch = original(cls, batch, model_runner, **kwargs)
    if forward_batch.forward_mode.is_extend():
        _move_positions(forward_batch, batch)
    return forward_batch


def _move_positions(forward_batch: "ForwardBatch", batch: "ScheduleBatch") -> None:
    """Gives the kept tokens of retracted requests the positions that they had."""
    gaps = [(req.raas.prompt_len, req.raas.skipped_len) for req in batch.reqs]
    if not any(skipped for _, skipped in gaps):
        return
    each = torch.tensor(batch.extend_lens)
    by_token = torch.tensor(gaps, dtype=torch.int64).repeat_interleave(each, dim=0)
    prompt_lens, skipped = by_token.T.to(forward_batch.positions.device, non_blocking=True)
    moved = torch.where(forward_batch.positions >= prompt_lens, skipped, 0)
    forward_batch.positions = forward_batch.positions + moved
    mrope = forward_batch.mrope_positions
    if mrope is not None:
        is_whole = mrope.shape[1] == len(moved)
        forward_batch.mrope_positions = (
            mrope + moved if is_whole else _mrope(batch, forward_batch.positions)
        )
    # `model_runner` samples the next token of each row with it.
    forward_batch.raas_skipped_lens = torch.tensor(
        [skipped for _, skipped in gaps], dtype=torch.int64
    ).to(forward_batch.seq_lens.device, non_blocking=True)


def _mrope(batch: "ScheduleBatch", positions: torch.Tensor) -> torch.Tensor:
    """Positions of a prefill in which images stand before tokens that were generated: [3, T] int64.

    SGLang knows those of an image's prompt alone; text goes on behind it by a number of its own.

    Args:
        batch: SGLang's.
        positions: [T] int64, where its tokens stand in the text.
    """
    mrope = positions.repeat(3, 1)
    pieces = torch.split(mrope, batch.extend_lens, dim=1)  # views
    for piece, req, inputs, begin in zip(
        pieces, batch.reqs, batch.multimodal_inputs, batch.prefix_lens, strict=True
    ):
        if inputs is not None:
            piece += inputs.mrope_position_delta.item()
            end = min(begin + piece.shape[1], req.raas.prompt_len)
            known = inputs.mrope_positions[:, begin:end]
            piece[:, : known.shape[1]] = known
    return mrope


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
            "extend_position_info",
            "spec_mrope_positions",
            "kv_loc_plan",
            "write_cols",
        ),
        "gives the kept tokens of a retracted request their positions",
        "SGLang keeps logical and resident length apart",
        "tests/unit/test_forward_batch_info.py::test_tokens_after_the_prompt_stand_where_they_stood",
    ),
)
