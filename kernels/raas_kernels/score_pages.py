"""Bounds of all pages against the queries of some steps, for all layers in one launch.

Quest's bound of q·k over a page, ``sum_d max(q * low, q * high)``, is two matrix products, because
``low <= high``: ``high @ max(q, 0) + low @ min(q, 0)``. The products of 16-bit numbers are exact in
float32, which they are summed in. Minimum and maximum are taken from the key cache itself, so pages
of any size cost no memory, and all queries that came while a page was filled are scored at once, so
the cache is read once for them: ``L`` keys of each head and layer, for a row that is due. One
program per few tiles of pages, KV head, row and layer; of a row that is not due it ends at once.
"""

import triton
import triton.language as tl

from raas_kernels.layout import (
    DecodeBatch,
    EvictionBuffers,
    KeyCaches,
    StepBuffers,
    StepOptions,
)
from raas_kernels.select import RAAS

TILE_PAGES = 32
# Of a program. Programs that find nothing to do cost time too, so there should not be too many.
_PROGRAM_TOKENS = 512


def score_pages(
    step: StepBuffers,
    keys: KeyCaches,
    batch: DecodeBatch,
    buffers: EvictionBuffers,
    options: StepOptions,
) -> None:
    """Same contract as `torch_ops.score_pages`; asynchronous and CUDA-graph safe.

    Raises:
        ValueError: queries and keys differ in type, or a tensor is laid out otherwise.
    """
    layers, slots, heads, num_pages = buffers.stamps.shape
    rows, cache, steps = batch.positions.shape[0], keys.layers[0], options.scored_steps
    if rows == 0:
        return
    query_heads, head_dim = buffers.queries.shape[3:]
    if buffers.queries.dtype != cache.dtype:
        raise ValueError(
            "queries must have the type of the KV cache for bound scores, got "
            f"{buffers.queries.dtype} and {cache.dtype}; use --kv-score exact"
        )
    if cache.stride()[1:] != (head_dim, 1) or len(keys.pointers) != layers:
        raise ValueError(
            f"keys must be {layers} caches with contiguous heads of {head_dim}, got "
            f"{len(keys.pointers)} with strides {cache.stride()}"
        )
    max_rows = step.page_scores.shape[1]
    for tensor, name, shape in (
        (buffers.queries, "queries", (layers, slots, steps, query_heads, head_dim)),
        (step.page_scores, "page_scores", (layers, max_rows, steps, heads, num_pages)),
    ):
        if tensor.shape != shape or not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous {shape}, got {tuple(tensor.shape)} "
                f"with strides {tensor.stride()}"
            )
    group = query_heads // heads
    tile = min(TILE_PAGES, max(16, triton.next_power_of_2(num_pages)))
    tiles = max(1, _PROGRAM_TOKENS // (tile * options.page_size))
    _score_pages_kernel[(triton.cdiv(num_pages, tile * tiles) * heads, rows, layers)](
        buffers.queries,
        keys.pointers,
        cache,
        step.page_scores,
        batch.req_pool_indices,
        batch.positions,
        batch.kv_indptr,
        batch.kv_indices,
        batch.requests.policies,
        batch.requests.prompt_lens,
        batch.requests.budgets,
        slots,
        max_rows,
        num_pages,
        cache.stride(0),
        HEADS=heads,
        GROUP=group,
        BLOCK_GROUP=max(16, triton.next_power_of_2(group)),
        HEAD_DIM=head_dim,
        BLOCK_DIM=max(16, triton.next_power_of_2(head_dim)),
        BLOCK_PAGES=tile,
        TILES=tiles,
        PAGE_SIZE=options.page_size,
        SCORED_STEPS=steps,
        # The interpreter would multiply the bits of bfloat16.
        WIDE=cache.device.type == "cpu",
        num_warps=4,
    )


@triton.jit
def _score_pages_kernel(
    queries_ptr,
    pointers_ptr,
    key_cache_ptr,
    page_scores_ptr,
    req_pool_indices_ptr,
    positions_ptr,
    kv_indptr_ptr,
    kv_indices_ptr,
    policies_ptr,
    prompt_lens_ptr,
    budgets_ptr,
    num_slots,
    max_rows,
    num_pages,
    stride_key_cache,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_PAGES: tl.constexpr,
    TILES: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    SCORED_STEPS: tl.constexpr,
    WIDE: tl.constexpr,
):
    head = tl.program_id(0) % HEADS
    first = tl.program_id(0) // HEADS * (TILES * BLOCK_PAGES)
    row = tl.program_id(1)
    layer = tl.program_id(2).to(tl.int64)
    policy = tl.load(policies_ptr + row)
    prompt_len = tl.load(prompt_lens_ptr + row)
    step = tl.load(positions_ptr + row).to(tl.int32) - prompt_len
    count = tl.minimum(step // PAGE_SIZE + 1, tl.load(budgets_ptr + row) // PAGE_SIZE)
    if (policy != RAAS) | ((step + 1) % SCORED_STEPS != 0) | (first >= count):
        return
    # Only the type of this pointer is used: the layers' caches are tensors of their own.
    key_type = key_cache_ptr.dtype.element_ty
    cache = tl.load(pointers_ptr + layer).to(tl.pointer_type(key_type))
    factor_type = tl.float32 if WIDE else key_type
    tokens = kv_indices_ptr + tl.load(kv_indptr_ptr + row).to(tl.int64) + prompt_len
    slot = tl.load(req_pool_indices_ptr + row).to(tl.int64)
    dims, members = tl.arange(0, BLOCK_DIM), tl.arange(0, BLOCK_GROUP)
    inside, asked = dims < HEAD_DIM, members < GROUP
    asked_dims = asked[:, None] & inside[None, :]
    of_head = head * HEAD_DIM + dims[None, :]
    for tile in range(TILES):
        pages = first + tile * BLOCK_PAGES + tl.arange(0, BLOCK_PAGES)
        present = pages < count
        mask = present[:, None] & inside[None, :]
        slots = tl.load(tokens + pages * PAGE_SIZE, mask=present, other=0).to(tl.int64)
        key = tl.load(cache + slots[:, None] * stride_key_cache + of_head, mask=mask, other=0.0)
        low, high = key.to(tl.float32), key.to(tl.float32)
        for token in range(1, PAGE_SIZE):
            slots = tl.load(tokens + pages * PAGE_SIZE + token, mask=present, other=0).to(tl.int64)
            key = tl.load(cache + slots[:, None] * stride_key_cache + of_head, mask=mask, other=0.0)
            low = tl.minimum(low, key.to(tl.float32))
            high = tl.maximum(high, key.to(tl.float32))
        low, high = low.to(factor_type), high.to(factor_type)
        for place in range(SCORED_STEPS):
            of_step = ((layer * num_slots + slot) * SCORED_STEPS + place) * HEADS + head
            query = (of_step * GROUP + members[:, None]) * HEAD_DIM + dims[None, :]
            query = tl.load(queries_ptr + query, mask=asked_dims, other=0.0)
            query = query.to(tl.float32)
            above = tl.maximum(query, 0.0).to(factor_type)
            below = tl.minimum(query, 0.0).to(factor_type)
            scores = tl.dot(high, tl.trans(above), input_precision="ieee")
            scores = tl.dot(low, tl.trans(below), scores, input_precision="ieee")
            scores = tl.where(asked[None, :], scores, float("-inf"))
            here = ((layer * max_rows + row) * SCORED_STEPS + place) * HEADS + head
            best = tl.max(scores, axis=1)
            tl.store(page_scores_ptr + here * num_pages + pages, best, mask=present)
