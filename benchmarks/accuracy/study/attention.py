"""Attention of one token over slots and prompt, and the attention to expect; in torch or Triton.

Shapes: rows are answers being decoded, ``G`` query heads share one of ``H`` KV heads. Slots are
[rows, H, L, D], of which the first ``count`` hold a token; prompts are packed, [H, tokens, D].
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_GROUP = 16


@dataclass
class Prompts:
    """Keys and values of all prompts, one behind the other: [layers, H, tokens, D].

    Attributes:
        start: int64 [rows], where each begins.
        length: int64 [rows], its tokens.
        first: int64 [rows], the token that follows it.
    """

    keys: Tensor
    values: Tensor
    start: Tensor
    length: Tensor
    first: Tensor


@dataclass
class Statistics:
    """What attention says of a layer's slots, each float32 [rows, H, L].

    Attributes:
        largest: Largest probability among the group's query heads.
        own: The same, of a softmax over the generated tokens alone.
        mass: Sum of the probabilities of the group.
        logit: Largest logit of the group.
    """

    largest: Tensor
    own: Tensor
    mass: Tensor
    logit: Tensor


def attend(
    q: Tensor,
    slots: tuple[Tensor, Tensor],
    prompt: tuple[Tensor, Tensor],
    where: tuple[Tensor, Tensor],
    step: Tensor,
    scale: float,
    statistics: Statistics | None,
) -> Tensor:
    """Mixes the values that each query attends.

    Args:
        q: [rows, H, G, D].
        slots: Keys and values.
        prompt: Keys and values.
        where: Start and length of each row's prompt.
        step: int64 [1]; it fills slots up to this one, until all are full.
        scale: Of the logits.
        statistics: Written, where wanted.

    Returns:
        The shape of q.
    """
    if q.is_cuda:
        from benchmarks.accuracy.study.kernels import attend_triton

        return attend_triton(q, slots, prompt, where, step, scale, statistics)
    count = min(int(step) + 1, slots[0].shape[2])
    mixed = []
    for row, (start, length) in enumerate(zip(*(x.tolist() for x in where), strict=True)):
        keys, values = (
            torch.cat([x[row, :, :count], y[:, start : start + length]], 1).float()
            for x, y in zip(slots, prompt, strict=True)
        )
        logits = q[row].float() @ keys.transpose(1, 2) * scale
        shares = logits.softmax(-1)
        mixed.append(shares @ values)
        if statistics:
            statistics.largest[row, :, :count] = shares[..., :count].amax(1)
            statistics.own[row, :, :count] = logits[..., :count].softmax(-1).amax(1)
            statistics.mass[row, :, :count] = shares[..., :count].sum(1)
            statistics.logit[row, :, :count] = logits[..., :count].amax(1)
    return torch.stack(mixed).to(q.dtype)


def expected(
    mean: Tensor,
    half_variance: Tensor,
    origin: Tensor,
    keys: Tensor,
    prompt_keys: Tensor,
    where: tuple[Tensor, Tensor],
    count: int,
    with_prompt: bool,
) -> tuple[Tensor, Tensor]:
    """Returns the logarithm of a logit's mean exponential under Gaussian queries.

    That is the logit's mean and half its variance.

    Args:
        mean: float32 [layers, rows, H, G, D], mean query times the scale of logits.
        half_variance: The same for half of the variance, times the scale squared.
        origin: float32 [layers, rows, H, D], what keys are taken from.
        keys: [layers, rows, H, L, D]; there may be more rows.
        prompt_keys: [layers, H, tokens, D].
        where: Start and length of each row's prompt.
        count: Slots that hold a token.
        with_prompt: Whether the log-sum-exp takes in the prompt's keys.

    Returns:
        float32 [layers, rows, H, G, L], and its log-sum-exp over the keys [layers, rows, H, G].
    """
    if keys.is_cuda:
        from benchmarks.accuracy.study.kernels import expected_triton

        moments = mean, half_variance, origin
        return expected_triton(*moments, keys, prompt_keys, where, count, with_prompt)

    def score(key: Tensor, at: slice | int) -> Tensor:
        key = key - origin[:, at, :, None]
        x = mean[:, at] @ key.transpose(-2, -1)
        return x + half_variance[:, at] @ key.square().transpose(-2, -1)

    found = score(keys[:, : mean.shape[1], :, :count].float(), slice(None))
    lse = found.logsumexp(-1)
    if with_prompt:
        for row, (start, length) in enumerate(zip(*(x.tolist() for x in where), strict=True)):
            of_prompt = score(prompt_keys[:, :, start : start + length].float(), row)
            lse[:, row] = torch.logaddexp(lse[:, row], of_prompt.logsumexp(-1))
    out = found.new_zeros(*found.shape[:-1], keys.shape[3])
    out[..., :count] = found
    return out, lse
