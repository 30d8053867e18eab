"""Store of one decode step: all that has to happen in each layer, and before its attention.

One warp per row and KV head, which moves the head's key and value and, with bound scores, copies
its queries. It waits for nothing but its slots, which `claim_slots` found. From Hopper on it
is launched while the kernel before it ends, and lets attention do the same (programmatic dependent
launch); each waits for the writes of the one before.
"""

from functools import cache

import torch
import triton
import triton.language as tl

from raas_kernels.layout import EvictionBuffers, StepBuffers, StepOptions


def store_decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    step: StepBuffers,
    buffers: EvictionBuffers,
    options: StepOptions,
) -> None:
    """Same contract as `torch_ops.store_decode`; asynchronous and CUDA-graph safe.

    Raises:
        ValueError: a tensor has a shape, a stride or a type that the kernel does not take.
    """
    rows, heads, head_dim = k.shape
    if rows == 0:
        return
    _check_inputs(q, k, v)
    _check_rows("targets", step.targets, rows, (heads,), torch.int32)
    if options.bound_scores:
        _check_rows("query_places", step.query_places, rows, (), torch.int32)
        _check_rows("queries", buffers.queries, 1, (options.scored_steps, *q.shape[1:]), q.dtype)
    group = q.shape[1] // heads
    overlaps = _has_dependent_launch(q.device)
    _store_decode_kernel[(heads, rows)](
        q,
        k,
        v,
        key_cache,
        value_cache,
        step.targets,
        step.query_places,
        buffers.queries,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        key_cache.stride(0),
        value_cache.stride(0),
        HEADS=heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_DIM=triton.next_power_of_2(head_dim),
        BLOCK_QUERIES=triton.next_power_of_2(group * head_dim),
        BOUND_SCORES=options.bound_scores,
        OVERLAPS=overlaps,
        num_warps=1,
        **({"launch_pdl": True} if overlaps else {}),
    )


@cache
def _has_dependent_launch(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def _check_inputs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() != 3 or tensor.stride(2) != 1 or tensor.stride(1) != tensor.shape[2]:
            raise ValueError(
                f"{name} must be [B, heads, D] with contiguous heads, got shape "
                f"{tuple(tensor.shape)} and strides {tensor.stride()}"
            )
    if v.shape != k.shape or q.shape[2] != k.shape[2] or q.shape[1] % k.shape[1]:
        raise ValueError(
            "k and v must have one shape and q a multiple of its heads, got "
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        )


def _check_rows(
    name: str, tensor: torch.Tensor, rows: int, row_shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    if (
        tensor.shape[1:] != row_shape
        or tensor.shape[0] < rows
        or tensor.dtype != dtype
        or not tensor.is_contiguous()
    ):
        raise ValueError(
            f"{name} must be contiguous {dtype} with at least {rows} rows of {tuple(row_shape)}, "
            f"got {tensor.dtype} {tuple(tensor.shape)} with strides {tensor.stride()}"
        )


@triton.jit
def _store_decode_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    key_cache_ptr,
    value_cache_ptr,
    targets_ptr,
    query_places_ptr,
    queries_ptr,
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
    BOUND_SCORES: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    if OVERLAPS:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    head = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    target = tl.load(targets_ptr + row * HEADS + head).to(tl.int64)
    offsets = tl.arange(0, BLOCK_DIM)
    inside = offsets < HEAD_DIM
    dims = head * HEAD_DIM + offsets
    key = tl.load(k_ptr + row * stride_k + dims, mask=inside)
    value = tl.load(v_ptr + row * stride_v + dims, mask=inside)
    if BOUND_SCORES:
        place = tl.load(query_places_ptr + row).to(tl.int64)
        members = tl.arange(0, BLOCK_QUERIES)
        present = members < GROUP * HEAD_DIM
        members += head * GROUP * HEAD_DIM
        query = tl.load(q_ptr + row * stride_q + members, mask=present)
        tl.store(queries_ptr + place * HEADS * GROUP * HEAD_DIM + members, query, mask=present)
    tl.store(key_cache_ptr + target * stride_key_cache + dims, key, mask=inside)
    tl.store(value_cache_ptr + target * stride_value_cache + dims, value, mask=inside)
