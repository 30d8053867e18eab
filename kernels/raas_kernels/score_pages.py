"""Bounds of all pages against the queries of a step, for all layers in one launch.

Quest's bound of q·k over a page, ``sum_d max(q * low, q * high)``, is two matrix products, because
``low <= high``: ``high @ max(q, 0) + low @ min(q, 0)``. The products of 16-bit numbers are exact in
float32, which they are summed in. One program per tile of pages, KV head, row and layer; it reads
the tile's bounds once for all queries of the head: per row, head and layer 2 * N * D numbers. The
program whose tile has the page being filled also extends it; nobody scores that page, so it matters
to no one which of its bounds are read beside.
"""

import torch
import triton
import triton.language as tl

from raas_kernels.layout import DecodeBatch, EvictionBuffers, StepBuffers, StepOptions
from raas_kernels.select import RAAS

TILE_PAGES = 32


def score_pages(
    step: StepBuffers, batch: DecodeBatch, buffers: EvictionBuffers, options: StepOptions
) -> None:
    """Same contract as `torch_ops.score_pages`; asynchronous and CUDA-graph safe.

    Raises:
        ValueError: queries and bounds differ in type, or keys or scores are laid out otherwise.
    """
    layers, slots, heads, num_pages = buffers.stamps.shape
    rows, query_heads, head_dim = batch.positions.shape[0], *step.queries.shape[2:]
    if rows == 0:
        return
    if step.queries.dtype != buffers.key_min.dtype:
        raise ValueError(
            "queries must have the type of the KV cache for bound scores, got "
            f"{step.queries.dtype} and {buffers.key_min.dtype}; use --kv-score exact"
        )
    max_rows = step.queries.shape[1]
    for name, last, dtype in (
        ("keys", head_dim, buffers.key_min.dtype),
        ("page_scores", num_pages, torch.float32),
    ):
        tensor, expected = getattr(step, name), (layers, max_rows, heads, last)
        if tensor.shape != expected or tensor.dtype != dtype or not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous {dtype} {expected}, got {tensor.dtype} "
                f"{tuple(tensor.shape)} with strides {tensor.stride()}"
            )
    group = query_heads // heads
    tile = min(TILE_PAGES, max(16, triton.next_power_of_2(num_pages)))
    _score_pages_kernel[(triton.cdiv(num_pages, tile) * heads, rows, layers)](
        step.queries,
        step.keys,
        step.page_scores,
        batch.req_pool_indices,
        batch.positions,
        batch.requests.policies,
        batch.requests.prompt_lens,
        batch.requests.budgets,
        buffers.current,
        buffers.key_min,
        buffers.key_max,
        slots,
        max_rows,
        num_pages,
        HEADS=heads,
        GROUP=group,
        BLOCK_GROUP=max(16, triton.next_power_of_2(group)),
        HEAD_DIM=head_dim,
        BLOCK_DIM=max(16, triton.next_power_of_2(head_dim)),
        BLOCK_PAGES=tile,
        PAGE_SIZE=options.page_size,
        STAMP_INTERVAL=options.stamp_interval,
        num_warps=4,
    )


@triton.jit
def _score_pages_kernel(
    queries_ptr,
    keys_ptr,
    page_scores_ptr,
    req_pool_indices_ptr,
    positions_ptr,
    policies_ptr,
    prompt_lens_ptr,
    budgets_ptr,
    current_ptr,
    key_min_ptr,
    key_max_ptr,
    num_slots,
    max_rows,
    num_pages,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_PAGES: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    STAMP_INTERVAL: tl.constexpr,
):
    head = tl.program_id(0) % HEADS
    first = tl.program_id(0) // HEADS * BLOCK_PAGES
    row = tl.program_id(1)
    layer = tl.program_id(2).to(tl.int64)
    policy = tl.load(policies_ptr + row)
    slot = tl.load(req_pool_indices_ptr + row).to(tl.int64)
    step = tl.load(positions_ptr + row).to(tl.int32) - tl.load(prompt_lens_ptr + row)
    count = tl.minimum(step // PAGE_SIZE + 1, tl.load(budgets_ptr + row) // PAGE_SIZE)
    owner = (layer * num_slots + slot) * HEADS + head
    current = tl.load(current_ptr + owner)
    due = (step + 1) % STAMP_INTERVAL == 0
    here = (layer * max_rows + row) * HEADS + head
    dims = tl.arange(0, BLOCK_DIM)
    if (policy == RAAS) & (current >= first) & (current < first + BLOCK_PAGES):
        inside = dims < HEAD_DIM
        bounds = (owner * num_pages + current) * HEAD_DIM + dims
        key = tl.load(keys_ptr + here * HEAD_DIM + dims, mask=inside)
        kept = inside & (step % PAGE_SIZE != 0)
        low = tl.load(key_min_ptr + bounds, mask=kept, other=float("inf"))
        high = tl.load(key_max_ptr + bounds, mask=kept, other=float("-inf"))
        tl.store(key_min_ptr + bounds, tl.minimum(low, key), mask=inside)
        tl.store(key_max_ptr + bounds, tl.maximum(high, key), mask=inside)
    if (policy == RAAS) & due & (first < count):
        pages = first + tl.arange(0, BLOCK_PAGES)
        members = tl.arange(0, BLOCK_GROUP)
        bounds = (owner * num_pages + pages[:, None]) * HEAD_DIM + dims[None, :]
        mask = (pages < count)[:, None] & (dims < HEAD_DIM)[None, :]
        low = tl.load(key_min_ptr + bounds, mask=mask, other=0.0)
        high = tl.load(key_max_ptr + bounds, mask=mask, other=0.0)

        inside = (members < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
        query = (here * GROUP + members[:, None]) * HEAD_DIM + dims[None, :]
        query = tl.load(queries_ptr + query, mask=inside, other=0.0)
        above = tl.maximum(query, 0.0).to(query.dtype)
        below = tl.minimum(query, 0.0).to(query.dtype)
        scores = tl.dot(high, tl.trans(above), input_precision="ieee")
        scores = tl.dot(low, tl.trans(below), scores, input_precision="ieee")
        scores = tl.where((members < GROUP)[None, :], scores, float("-inf"))
        best = tl.max(scores, axis=1)
        scored = (pages < count) & (pages != current)
        tl.store(page_scores_ptr + here * num_pages + pages, best, mask=scored)
