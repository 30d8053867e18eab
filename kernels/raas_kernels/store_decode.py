"""Store of one decode step: all that has to happen in each layer, and before its attention.

Two warps per row and KV head. One moves the head's key and value; the other notes its queries.
What raas knows of recent keys and queries is read and written in float32. It waits for nothing but
its slots, which `claim_slots` found. From Hopper on it is launched while the kernel before it ends,
and lets attention do the same (programmatic dependent launch); each waits for the writes of the one
before.
"""

import math
from functools import cache

import torch
import triton
import triton.language as tl

from raas_kernels.buffers import TABLES, EvictionBuffers, StepBuffers, require_rows
from raas_kernels.layout import MEMORY, UNSCALED, DecodeBatch, KVScales
from raas_kernels.record import agreed
from raas_kernels.select import H2O, RAAS, RAAS_PAPER


def store_decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    step: StepBuffers,
    batch: DecodeBatch,
    buffers: EvictionBuffers,
    scales: KVScales = UNSCALED,
) -> None:
    """As of `raas_kernels.ops.Ops.store_decode`; asynchronous and CUDA-graph safe.

    Raises:
        ValueError: a tensor has a shape, a stride or a type that the kernel does not take.
    """
    rows, heads, head_dim = k.shape
    if rows == 0:
        return
    sizes = agreed(step, buffers)
    require_rows(step, rows)
    _check_inputs(q, k, v, step, sizes)
    group = sizes["Hq"] // heads
    overlaps = _has_dependent_launch(q.device)
    _store_decode_kernel[(2 * heads, rows)](
        q_ptr=q,
        k_ptr=k,
        v_ptr=v,
        key_cache_ptr=key_cache,
        value_cache_ptr=value_cache,
        **step.pointers("targets", "places", "queries"),
        **batch.pointers("req_pool_indices", "positions"),
        **batch.requests.pointers("policies", "prompt_lens", "first_steps"),
        **buffers.pointers("value_norms", "query_means", "query_variances"),
        **buffers.pointers("key_means", "key_variances"),
        k_scale=_rounded(scales.k_scale, k.dtype),
        v_scale=_rounded(scales.v_scale, v.dtype),
        least_share=1 - math.exp(-1 / MEMORY),
        most=sizes["N"],
        stride_q=q.stride(0),
        stride_k=k.stride(0),
        stride_v=v.stride(0),
        stride_key_cache=key_cache.stride(0),
        stride_value_cache=value_cache.stride(0),
        HEADS=heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_DIM=triton.next_power_of_2(head_dim),
        BLOCK_QUERIES=triton.next_power_of_2(group * head_dim),
        OVERLAPS=overlaps,
        num_warps=1,
        **({"launch_pdl": True} if overlaps else {}),
    )


@cache
def _rounded(scale: float | None, dtype: torch.dtype) -> float | None:
    """A scale as SGLang divides by it: on a GPU torch brings its tensor to the type of the keys."""
    return scale if scale is None else float(torch.tensor(scale, dtype=dtype, device="cpu"))


@cache
def _has_dependent_launch(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def _check_inputs(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, step: StepBuffers, sizes: dict[str, int]
) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() != 3 or tensor.stride(2) != 1 or tensor.stride(1) != tensor.shape[2]:
            raise ValueError(
                f"{name} must be [B, heads, D] with contiguous heads, got shape "
                f"{tuple(tensor.shape)} and strides {tensor.stride()}"
            )
    heads, query_heads, dim = sizes["H"], sizes["Hq"], sizes["D"]
    if k.shape[1:] != (heads, dim) or v.shape != k.shape or q.shape[1:] != (query_heads, dim):
        raise ValueError(
            f"k and v must be [B, {heads}, {dim}] and q [B, {query_heads}, {dim}], got "
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        )
    if step.queries.dtype != q.dtype:
        raise ValueError(f"queries must be {q.dtype} as q, got {step.queries.dtype}")


@triton.jit(do_not_specialize_on_alignment=TABLES)
def _store_decode_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    key_cache_ptr,
    value_cache_ptr,
    targets_ptr,
    places_ptr,
    queries_ptr,
    req_pool_indices_ptr,
    positions_ptr,
    policies_ptr,
    prompt_lens_ptr,
    first_steps_ptr,
    value_norms_ptr,
    query_means_ptr,
    query_variances_ptr,
    key_means_ptr,
    key_variances_ptr,
    k_scale,  # None, for 1, is another kernel
    v_scale,
    least_share,
    most,
    stride_q,
    stride_k,
    stride_v,
    stride_key_cache,
    stride_value_cache,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    if OVERLAPS:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    head = tl.program_id(0) % HEADS
    row = tl.program_id(1).to(tl.int64)
    request = tl.load(req_pool_indices_ptr + row).to(tl.int64)
    policy = tl.load(policies_ptr + row)
    step = tl.load(positions_ptr + row).to(tl.int32) - tl.load(prompt_lens_ptr + row)
    seen = step - tl.load(first_steps_ptr + row) + 1  # tokens since the first, this one too
    # Means are plain at first, and then forget. The first token has none before it.
    share = tl.maximum(1.0 / tl.maximum(seen, 1).to(tl.float32), least_share)
    if tl.program_id(0) < HEADS:
        target = tl.load(targets_ptr + row * HEADS + head).to(tl.int64)
        place = tl.load(places_ptr + row * HEADS + head)
        offsets = tl.arange(0, BLOCK_DIM)
        inside = offsets < HEAD_DIM
        dims = head * HEAD_DIM + offsets
        key = tl.load(k_ptr + row * stride_k + dims, mask=inside, other=0.0)
        value = tl.load(v_ptr + row * stride_v + dims, mask=inside, other=0.0)
        if policy == RAAS:
            here = request * (HEADS * HEAD_DIM) + dims
            known = inside & (seen > 1)
            _note_moments(key_means_ptr + here, key_variances_ptr + here, key, share, known, inside)
        if k_scale is not None:
            key = tl.div_rn(key.to(tl.float32), k_scale).to(key.dtype)
        if v_scale is not None:
            value = tl.div_rn(value.to(tl.float32), v_scale).to(value.dtype)
        value = value.to(value_cache_ptr.dtype.element_ty)
        tl.store(key_cache_ptr + target * stride_key_cache + dims, key, mask=inside)
        tl.store(value_cache_ptr + target * stride_value_cache + dims, value, mask=inside)
        wide = value.to(tl.float32)
        norm = tl.sqrt(tl.sum(wide * wide, axis=0))
        tl.store(value_norms_ptr + (request * HEADS + head) * most + place, norm, mask=place >= 0)
    else:
        members = tl.arange(0, BLOCK_QUERIES)
        present = members < GROUP * HEAD_DIM
        members += head * GROUP * HEAD_DIM
        query = tl.load(q_ptr + row * stride_q + members, mask=present, other=0.0)
        if policy == RAAS:
            here = request * (HEADS * GROUP * HEAD_DIM) + members
            known = present & (seen > 1)
            _note_moments(
                query_means_ptr + here, query_variances_ptr + here, query, share, known, present
            )
        if (policy == RAAS_PAPER) | (policy == H2O):
            here = row * (HEADS * GROUP * HEAD_DIM) + members
            tl.store(queries_ptr + here, query, mask=present)


@triton.jit
def _note_moments(means, variances, x, share, known, present):
    """Moves mean and variance of each dimension on by a vector; what is not known yet is 0."""
    mean = tl.load(means, mask=known, other=0.0)
    variance = tl.load(variances, mask=known, other=0.0)
    apart = x.to(tl.float32) - mean
    tl.store(means, mean + share * apart, mask=present)
    tl.store(variances, (1.0 - share) * (variance + share * apart * apart), mask=present)
