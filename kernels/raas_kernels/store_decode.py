"""Store of one decode step, in place: all that has to happen before attention.

One warp per row and KV head. Per layer it moves one key and one value, the bounds of one page and,
with bound scores, the head's queries; only where a saturated request begins a page does it read the
state of all pages, 12 bytes each.
"""

import torch
import triton
import triton.language as tl

from raas_kernels.layout import DecodeBatch, EvictionBuffers, StepOptions
from raas_kernels.select import RAAS, victim


def store_decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    queries: torch.Tensor,
    batch: DecodeBatch,
    buffers: EvictionBuffers,
    layer_id: int,
    options: StepOptions,
) -> None:
    """Same contract as `torch_ops.store_decode`; asynchronous and CUDA-graph safe.

    Raises:
        ValueError: a tensor has a shape or a stride that the kernel does not take.
    """
    rows, heads, head_dim = k.shape
    if rows == 0:
        return
    _check(q, k, v, queries, options)
    group, num_pages = q.shape[1] // heads, buffers.stamps.shape[2]
    tables = batch.requests
    _store_decode_kernel[(rows, heads)](
        q,
        k,
        v,
        key_cache,
        value_cache,
        queries,
        *batch[:5],
        tables.policies,
        tables.prompt_lens,
        tables.budgets,
        *buffers,
        layer_id,
        options.head_offset,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        key_cache.stride(0),
        value_cache.stride(0),
        num_pages,
        HEADS=heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_DIM=triton.next_power_of_2(head_dim),
        BLOCK_QUERIES=triton.next_power_of_2(group * head_dim),
        BLOCK_PAGES=triton.next_power_of_2(num_pages),
        PAGE_SIZE=options.page_size,
        BOUND_SCORES=options.bound_scores,
        num_warps=1,
    )


def _check(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, queries: torch.Tensor, options: StepOptions
) -> None:
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
    if options.bound_scores and (
        queries.shape[1:] != q.shape[1:]
        or queries.shape[0] < q.shape[0]
        or not queries.is_contiguous()
    ):
        raise ValueError(
            f"queries must be contiguous with at least {q.shape[0]} rows of {tuple(q.shape[1:])}, "
            f"got shape {tuple(queries.shape)} and strides {queries.stride()}"
        )


# A layer_id of 1 would otherwise become a constant, and so a kernel of its own.
@triton.jit(do_not_specialize=["layer_id", "head_offset"])
def _store_decode_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    key_cache_ptr,
    value_cache_ptr,
    queries_ptr,
    req_pool_indices_ptr,
    positions_ptr,
    out_cache_loc_ptr,
    kv_indptr_ptr,
    kv_indices_ptr,
    policies_ptr,
    prompt_lens_ptr,
    budgets_ptr,
    stamps_ptr,
    births_ptr,
    mass_ptr,
    current_ptr,
    key_min_ptr,
    key_max_ptr,
    layer_id,
    head_offset,
    stride_q,
    stride_k,
    stride_v,
    stride_key_cache,
    stride_value_cache,
    num_pages,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_PAGES: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BOUND_SCORES: tl.constexpr,
):
    row = tl.program_id(0)
    head = tl.program_id(1)
    dims = tl.arange(0, BLOCK_DIM)
    dim_mask = dims < HEAD_DIM

    # Whatever depends on the row alone is asked for at once: the time is that of waiting in turn.
    slot = tl.load(req_pool_indices_ptr + row).to(tl.int64)
    policy = tl.load(policies_ptr + row)
    position = tl.load(positions_ptr + row).to(tl.int32)
    prompt_len = tl.load(prompt_lens_ptr + row)
    budget = tl.load(budgets_ptr + row)
    row_start = tl.load(kv_indptr_ptr + row).to(tl.int64)
    target = tl.load(out_cache_loc_ptr + row).to(tl.int64)
    head_row = head * HEAD_DIM + dims
    key = tl.load(k_ptr + row.to(tl.int64) * stride_k + head_row, mask=dim_mask, other=0.0)
    value = tl.load(v_ptr + row.to(tl.int64) * stride_v + head_row, mask=dim_mask, other=0.0)
    current = tl.load(current_ptr + slot * HEADS + head)

    step = position - prompt_len
    evicts = policy != 0
    begins = evicts & (step % PAGE_SIZE == 0)
    saturated = evicts & (step >= budget)
    state = (slot * HEADS + head) * num_pages

    # The page of this step: the next one while growing, then a victim, then the same again.
    page = tl.where(saturated, current, step // PAGE_SIZE)
    if saturated & begins:
        pages = tl.arange(0, BLOCK_PAGES)
        present = pages < budget // PAGE_SIZE
        stamps = tl.load(stamps_ptr + state + pages, mask=present, other=0)
        births = tl.load(births_ptr + state + pages, mask=present, other=0)
        mass = tl.load(mass_ptr + state + pages, mask=present, other=0.0)
        page = victim(
            policy, step, budget, layer_id, head + head_offset,
            stamps, births, mass, pages, present,
        )  # fmt: skip
    place = row_start + prompt_len + page * PAGE_SIZE + step % PAGE_SIZE
    in_place = tl.load(kv_indices_ptr + place, mask=saturated, other=0).to(tl.int64)
    target = tl.where(saturated, in_place, target)

    if BOUND_SCORES:
        if policy == RAAS:
            members = tl.arange(0, BLOCK_QUERIES)
            member_mask = members < GROUP * HEAD_DIM
            members += head * GROUP * HEAD_DIM
            query = tl.load(q_ptr + row.to(tl.int64) * stride_q + members, mask=member_mask)
            bounds = (state + page) * HEAD_DIM + dims
            kept = dim_mask & (begins == 0)
            low = tl.load(key_min_ptr + bounds, mask=kept, other=float("inf"))
            high = tl.load(key_max_ptr + bounds, mask=kept, other=float("-inf"))
            copy = queries_ptr + row.to(tl.int64) * HEADS * GROUP * HEAD_DIM + members
            tl.store(copy, query, mask=member_mask)
            cached = key.to(key_cache_ptr.dtype.element_ty)
            tl.store(key_min_ptr + bounds, tl.minimum(low, cached), mask=dim_mask)
            tl.store(key_max_ptr + bounds, tl.maximum(high, cached), mask=dim_mask)

    tl.store(key_cache_ptr + target * stride_key_cache + head_row, key, mask=dim_mask)
    tl.store(value_cache_ptr + target * stride_value_cache + head_row, value, mask=dim_mask)
    if evicts:
        tl.store(stamps_ptr + state + page, step)
        if begins:
            tl.store(current_ptr + slot * HEADS + head, page)
            tl.store(births_ptr + state + page, step)
            tl.store(mass_ptr + state + page, 0.0)
