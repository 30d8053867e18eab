"""Store of one decode step, in place, fused with victim choice, bounds, scoring and stamping.

One program per row and KV head. Per layer it reads the page bounds of the resident pages (1/16 of
the keys and values that attention reads) and writes one key, one value and one row of timestamps.
"""

import torch
import triton
import triton.language as tl

from raas_kernels.layout import DecodeBatch, EvictionBuffers, RequestTables, StepOptions
from raas_kernels.select import RAAS, top_pages, victim


def store_decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: DecodeBatch,
    tables: RequestTables,
    buffers: EvictionBuffers,
    options: StepOptions,
) -> None:
    """Same contract as `torch_ops.store_decode`; asynchronous and CUDA-graph safe.

    Raises:
        ValueError: a tensor has a shape or a stride that the kernel does not take.
    """
    rows, heads, head_dim = k.shape
    if rows == 0:
        return
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() != 3 or tensor.stride(2) != 1 or tensor.stride(1) != tensor.shape[2]:
            raise ValueError(
                f"{name} must be [B, heads, D] with contiguous heads, got shape "
                f"{tuple(tensor.shape)} and strides {tensor.stride()}"
            )
    if v.shape != k.shape or q.shape[2] != head_dim or q.shape[1] % heads:
        raise ValueError(
            "k and v must have one shape and q a multiple of its heads, got "
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        )
    num_pages = buffers.stamps.shape[2]
    _store_decode_kernel[(rows, heads)](
        q,
        k,
        v,
        key_cache,
        value_cache,
        *batch,
        *tables,
        *buffers,
        options.layer_id,
        options.head_offset,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        key_cache.stride(0),
        value_cache.stride(0),
        batch.req_to_token.stride(0),
        num_pages,
        HEADS=heads,
        GROUP=q.shape[1] // heads,
        HEAD_DIM=head_dim,
        BLOCK_DIM=triton.next_power_of_2(head_dim),
        BLOCK_PAGES=triton.next_power_of_2(num_pages),
        PAGE_SIZE=options.page_size,
        BOUND_SCORES=options.bound_scores,
        num_warps=4,
    )


# A layer_id of 1 would otherwise become a constant, and so a kernel of its own.
@triton.jit(do_not_specialize=["layer_id", "head_offset"])
def _store_decode_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    key_cache_ptr,
    value_cache_ptr,
    req_pool_indices_ptr,
    seq_lens_ptr,
    out_cache_loc_ptr,
    req_to_token_ptr,
    policies_ptr,
    prompt_lens_ptr,
    budgets_ptr,
    stamp_pages_ptr,
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
    stride_req,
    num_pages,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_PAGES: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BOUND_SCORES: tl.constexpr,
):
    row = tl.program_id(0)
    head = tl.program_id(1)
    dims = tl.arange(0, BLOCK_DIM)
    dim_mask = dims < HEAD_DIM

    slot = tl.load(req_pool_indices_ptr + row).to(tl.int64)
    target = tl.load(out_cache_loc_ptr + row).to(tl.int64)
    policy = tl.load(policies_ptr + slot)
    head_row = head * HEAD_DIM + dims
    key = tl.load(k_ptr + row.to(tl.int64) * stride_k + head_row, mask=dim_mask, other=0.0)
    value = tl.load(v_ptr + row.to(tl.int64) * stride_v + head_row, mask=dim_mask, other=0.0)

    if policy != 0:
        prompt_len = tl.load(prompt_lens_ptr + slot)
        budget = tl.load(budgets_ptr + slot)
        step = tl.load(seq_lens_ptr + row).to(tl.int32) - 1 - prompt_len
        offset = step % PAGE_SIZE
        begins = offset == 0
        pages = tl.arange(0, BLOCK_PAGES)
        present = pages < budget // PAGE_SIZE
        state = (slot * HEADS + head) * num_pages
        stamps = tl.load(stamps_ptr + state + pages, mask=present, other=0)

        # The page of this step: the next one while growing, then a victim, then the same again.
        page = step // PAGE_SIZE
        if step >= budget:
            page = tl.load(current_ptr + slot * HEADS + head)
            if begins:
                births = tl.load(births_ptr + state + pages, mask=present, other=0)
                mass = tl.load(mass_ptr + state + pages, mask=present, other=0.0)
                page = victim(
                    policy, step, budget, layer_id, head + head_offset,
                    stamps, births, mass, pages, present,
                )  # fmt: skip
            column = prompt_len + page * PAGE_SIZE + offset
            target = tl.load(req_to_token_ptr + slot * stride_req + column).to(tl.int64)
        if begins:
            tl.store(current_ptr + slot * HEADS + head, page)
            tl.store(births_ptr + state + page, step)
            tl.store(mass_ptr + state + page, 0.0)

        if BOUND_SCORES:
            bounds = (state + page) * HEAD_DIM + dims
            low = tl.load(key_min_ptr + bounds, mask=dim_mask, other=0.0)
            high = tl.load(key_max_ptr + bounds, mask=dim_mask, other=0.0)
            low = tl.where(begins, key, tl.minimum(low, key))
            high = tl.where(begins, key, tl.maximum(high, key))
            tl.store(key_min_ptr + bounds, low, mask=dim_mask)
            tl.store(key_max_ptr + bounds, high, mask=dim_mask)

        # The current page is always stamped, so its bounds, just written, are never read here.
        chosen = pages == page
        if BOUND_SCORES:
            if policy == RAAS:
                candidate = present & (pages != page) & (pages < tl.cdiv(step + 1, PAGE_SIZE))
                scores = _bound_scores(
                    q_ptr + row.to(tl.int64) * stride_q + head * GROUP * HEAD_DIM,
                    key_min_ptr + state * HEAD_DIM,
                    key_max_ptr + state * HEAD_DIM,
                    pages, candidate, dims, dim_mask,
                    GROUP, HEAD_DIM, BLOCK_PAGES,
                )  # fmt: skip
                chosen = chosen | top_pages(scores, candidate, tl.load(stamp_pages_ptr + slot))
        tl.store(stamps_ptr + state + pages, step, mask=chosen)

    cached = head * HEAD_DIM + dims
    tl.store(key_cache_ptr + target * stride_key_cache + cached, key, mask=dim_mask)
    tl.store(value_cache_ptr + target * stride_value_cache + cached, value, mask=dim_mask)


@triton.jit
def _bound_scores(
    q_ptr, key_min_ptr, key_max_ptr, pages, candidate, dims, dim_mask,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_PAGES: tl.constexpr,
):  # fmt: skip
    """Upper bound of q·k over each page, maximum over the KV head's queries: [BLOCK_PAGES]."""
    scores = tl.full((BLOCK_PAGES,), float("-inf"), tl.float32)
    bounds = pages[:, None] * HEAD_DIM + dims[None, :]
    mask = candidate[:, None] & dim_mask[None, :]
    low = tl.load(key_min_ptr + bounds, mask=mask, other=0.0).to(tl.float32)
    high = tl.load(key_max_ptr + bounds, mask=mask, other=0.0).to(tl.float32)
    for member in tl.static_range(GROUP):
        query = tl.load(q_ptr + member * HEAD_DIM + dims, mask=dim_mask, other=0.0)
        query = query.to(tl.float32)[None, :]
        scores = tl.maximum(scores, tl.sum(tl.maximum(query * low, query * high), axis=1))
    return scores
