"""Triton kernels of the study; `attention` says what they return, and has it in plain torch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks.accuracy.study.attention import Statistics

BLOCK = 64
EXPECTED_BLOCK = 32
# tl.dot wants at least so many rows; a group of query heads is padded to it.
GROUP_ROWS = tl.constexpr(16)


def attend_triton(
    q: Tensor,
    slots: tuple[Tensor, Tensor],
    prompt: tuple[Tensor, Tensor],
    where: tuple[Tensor, Tensor],
    step: Tensor,
    scale: float,
    statistics: Statistics | None,
) -> Tensor:
    """`attention.attend`; all tensors but the prompt's must be contiguous."""
    rows, heads, group, size = q.shape
    out = torch.empty_like(q)
    parts = statistics or Statistics(out, out, out, out)
    attend_kernel[(rows * heads,)](
        q, *prompt, *slots, *where, step, out,
        parts.largest, parts.own, parts.mass, parts.logit, scale, prompt[0].shape[1],
        slots[0].shape[2], heads, group, size, BLOCK, statistics is not None,
    )  # fmt: skip
    return out


def expected_triton(
    mean: Tensor,
    half_variance: Tensor,
    origin: Tensor,
    keys: Tensor,
    prompt_keys: Tensor,
    where: tuple[Tensor, Tensor],
    count: int,
    with_prompt: bool,
) -> tuple[Tensor, Tensor]:
    """`attention.expected`; a layer of keys must be contiguous."""
    layers, rows, heads, group, size = mean.shape
    out, lse = mean.new_zeros(*mean.shape[:-1], keys.shape[3]), mean.new_empty(mean.shape[:-1])
    mean, half_variance = mean.contiguous(), half_variance.contiguous()
    expected_kernel[(rows * heads, layers)](
        mean, half_variance, origin, keys, prompt_keys, *where, out, lse,
        mean.stride(0), origin.stride(0), keys.stride(0), prompt_keys.stride(0),
        prompt_keys.shape[2], count, keys.shape[3], heads, group, size, EXPECTED_BLOCK, with_prompt,
    )  # fmt: skip
    return out, lse


@triton.jit
def attend_kernel(
    q, prompt_k, prompt_v, slots_k, slots_v, start, length, step, out,
    largest, own, mass, logit, scale, prompt_tokens, budget,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
    STATISTICS: tl.constexpr,
):  # fmt: skip
    """One query head group of one row over its slots, then over its prompt."""
    pid = tl.program_id(0).to(tl.int64)  # times budget and size it may pass 2^31
    row, head = pid // HEADS, pid % HEADS
    g, d = tl.arange(0, GROUP_ROWS), tl.arange(0, D)
    is_head = (g < GROUP)[:, None]
    places = (pid * GROUP + g[:, None]) * D + d[None]
    query = tl.load(q + places, mask=is_head, other=0.0)
    top = tl.full([GROUP_ROWS], -1e30, tl.float32)
    total = tl.zeros([GROUP_ROWS], tl.float32)
    mixed = tl.zeros([GROUP_ROWS, D], tl.float32)
    count = tl.minimum(tl.load(step).to(tl.int32) + 1, budget)
    keys, values = slots_k + pid * budget * D, slots_v + pid * budget * D
    top, total, mixed = _over(keys, values, count, query, top, total, mixed, scale, D, BLOCK)
    own_lse = top + tl.log(total)
    first = head * prompt_tokens + tl.load(start + row)
    n = tl.load(length + row).to(tl.int32)
    top, total, mixed = _over(
        prompt_k + first * D, prompt_v + first * D, n, query, top, total, mixed, scale, D, BLOCK
    )
    tl.store(out + places, (mixed / total[:, None]).to(out.dtype.element_ty), mask=is_head)
    all_lse = top + tl.log(total)
    if STATISTICS:
        for j in range(0, count, BLOCK):
            at = j + tl.arange(0, BLOCK)
            key = tl.load(keys + at[:, None] * D + d[None], mask=(at < count)[:, None], other=0.0)
            x = tl.dot(query, tl.trans(key)) * scale
            share = tl.where(is_head, tl.exp(x - all_lse[:, None]), 0.0)
            own_share = tl.where(is_head, tl.exp(x - own_lse[:, None]), 0.0)
            to, here = pid * budget + at, at < count
            tl.store(largest + to, tl.max(share, 0), mask=here)
            tl.store(own + to, tl.max(own_share, 0), mask=here)
            tl.store(mass + to, tl.sum(share, 0), mask=here)
            tl.store(logit + to, tl.max(tl.where(is_head, x, -float("inf")), 0), mask=here)


@triton.jit
def _over(
    keys, values, count, query, top, total, mixed, scale, D: tl.constexpr, BLOCK: tl.constexpr
):
    """Online softmax over ``count`` keys that stand one behind the other."""
    d = tl.arange(0, D)
    for j in range(0, count, BLOCK):
        at = j + tl.arange(0, BLOCK)
        offsets, here = at[:, None] * D + d[None], at < count
        key = tl.load(keys + offsets, mask=here[:, None], other=0.0)
        value = tl.load(values + offsets, mask=here[:, None], other=0.0)
        x = tl.where(here[None], tl.dot(query, tl.trans(key)) * scale, -float("inf"))
        higher = tl.maximum(top, tl.max(x, 1))
        p = tl.exp(x - higher[:, None])
        fade = tl.exp(top - higher)
        total = total * fade + tl.sum(p, 1)
        mixed = mixed * fade[:, None] + tl.dot(p.to(value.dtype), value)
        top = higher
    return top, total, mixed


@triton.jit
def expected_kernel(
    mean, half_variance, origin, slots_k, prompt_k, start, length, out, lse,
    mean_stride, origin_stride, slots_stride, prompt_stride, prompt_tokens, count, budget,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
    PROMPT: tl.constexpr,
):  # fmt: skip
    """What Gaussian queries give the keys of one layer, row and KV head, and its log-sum-exp."""
    pid, layer = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    row, head = pid // HEADS, pid % HEADS
    g, d = tl.arange(0, GROUP_ROWS), tl.arange(0, D)
    is_head = (g < GROUP)[:, None]
    places = layer * mean_stride + (pid * GROUP + g[:, None]) * D + d[None]
    m = tl.load(mean + places, mask=is_head, other=0.0)
    v = tl.load(half_variance + places, mask=is_head, other=0.0)
    from_here = tl.load(origin + layer * origin_stride + pid * D + d)
    line = (layer * tl.num_programs(0) + pid) * GROUP + g
    top = tl.full([GROUP_ROWS], -1e30, tl.float32)
    total = tl.zeros([GROUP_ROWS], tl.float32)
    keys = slots_k + layer * slots_stride + pid * budget * D
    for j in range(0, count, BLOCK):
        at = j + tl.arange(0, BLOCK)
        here = (at < count)[None]
        x = _expected(keys, at, count, m, v, from_here, D)
        tl.store(out + line[:, None] * budget + at[None], x, mask=is_head & here)
        top, total = _grown(top, total, tl.where(here, x, -float("inf")))
    if PROMPT:
        n = tl.load(length + row).to(tl.int32)
        first = head * prompt_tokens + tl.load(start + row)
        keys = prompt_k + layer * prompt_stride + first * D
        for j in range(0, n, BLOCK):
            at = j + tl.arange(0, BLOCK)
            x = _expected(keys, at, n, m, v, from_here, D)
            top, total = _grown(top, total, tl.where((at < n)[None], x, -float("inf")))
    tl.store(lse + line, top + tl.log(total), mask=g < GROUP)


@triton.jit
def _expected(keys, at, count, mean, half_variance, origin, D: tl.constexpr):
    d = tl.arange(0, D)
    key = tl.load(keys + at[:, None] * D + d[None], mask=(at < count)[:, None], other=0.0)
    key = key.to(tl.float32) - origin[None]
    return tl.dot(mean, tl.trans(key)) + tl.dot(half_variance, tl.trans(key * key))


@triton.jit
def _grown(top, total, x):
    higher = tl.maximum(top, tl.max(x, 1))
    return higher, total * tl.exp(top - higher) + tl.sum(tl.exp(x - higher[:, None]), 1)
