"""Bounds of all pages against the queries of some steps, for all layers in one launch.

Quest's bound of q·k over a page, ``sum_d max(q * low, q * high)``, is two matrix products, because
``low <= high``: ``high @ max(q, 0) + low @ min(q, 0)``. The products of 16-bit numbers are exact in
float32, which they are summed in. Minimum and maximum are taken from the key cache itself, so pages
of any size cost no memory, and all queries that came while a page was filled are scored at once, so
the cache is read once for them: ``L`` keys of each head and layer, for a row that is due. That read
is the cost. One program per some tiles of pages, KV head, row and layer; the queries of all steps
are the columns of one product. Of a row that is not due it ends at once.
"""

import triton
import triton.language as tl

from raas_kernels.layout import (
    ALIGNMENT,
    DecodeBatch,
    EvictionBuffers,
    KeyCaches,
    StepBuffers,
    StepOptions,
)
from raas_kernels.select import RAAS

_TILE_PAGES = 64  # of 16-bit numbers; of wider ones fewer fit
# Of a program. Programs that find nothing to do cost time too, so there should not be too many.
_PROGRAM_TOKENS = 1024
_COLUMNS = 64  # queries of one product, of 16-bit numbers as well
_ALIGNMENT = tl.constexpr(ALIGNMENT)


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
    halves = cache.element_size() // 2
    tile = min(_TILE_PAGES // halves, max(16, triton.next_power_of_2(num_pages)))
    tiles = max(1, _PROGRAM_TOKENS // (tile * options.page_size))
    group = query_heads // heads
    members = max(triton.next_power_of_2(group), 16 // steps)
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
        BLOCK_GROUP=members,
        BLOCK_STEPS=min(steps, max(1, _COLUMNS // halves // members)),
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
    BLOCK_STEPS: tl.constexpr,
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
    # Only the type of this pointer is used: the layers' caches are tensors of their own. That they
    # are aligned cannot be seen, and without it keys would be loaded one number at a time.
    key_type = key_cache_ptr.dtype.element_ty
    cache = tl.load(pointers_ptr + layer).to(tl.pointer_type(key_type))
    cache = tl.multiple_of(cache, _ALIGNMENT)
    factor_type = tl.float32 if WIDE else key_type
    tokens = kv_indices_ptr + tl.load(kv_indptr_ptr + row).to(tl.int64) + prompt_len
    slot = tl.load(req_pool_indices_ptr + row).to(tl.int64)
    dims, columns = tl.arange(0, BLOCK_DIM), tl.arange(0, BLOCK_STEPS * BLOCK_GROUP)
    inside, members = dims < HEAD_DIM, columns % BLOCK_GROUP
    asked = members < GROUP
    of_head = head * HEAD_DIM + dims[None, :]
    # Queries of a block of steps, one in each column.
    of_step = ((layer * num_slots + slot) * SCORED_STEPS + columns // BLOCK_GROUP) * HEADS + head
    of_query = (of_step * GROUP + members)[None, :] * HEAD_DIM + dims[:, None]
    of_query = queries_ptr + of_query
    asked_dims = asked[None, :] & inside[:, None]
    steps = tl.arange(0, BLOCK_STEPS)
    of_scores = ((layer * max_rows + row) * SCORED_STEPS + steps) * HEADS + head
    of_scores = page_scores_ptr + of_scores[None, :] * num_pages
    if BLOCK_STEPS == SCORED_STEPS:
        above, below = _by_sign(tl.load(of_query, mask=asked_dims, other=0.0), factor_type)
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
        for begin in range(0, SCORED_STEPS, BLOCK_STEPS):
            if BLOCK_STEPS != SCORED_STEPS:
                query = tl.load(
                    of_query + begin * HEADS * GROUP * HEAD_DIM, mask=asked_dims, other=0.0
                )
                above, below = _by_sign(query, factor_type)
            scores = tl.dot(high, above, input_precision="ieee")
            scores = tl.dot(low, below, scores, input_precision="ieee")
            scores = tl.where(asked[None, :], scores, float("-inf"))
            scores = tl.reshape(scores, (BLOCK_PAGES, BLOCK_STEPS, BLOCK_GROUP))
            here = of_scores + begin * HEADS * num_pages + pages[:, None]
            tl.store(here, tl.max(scores, axis=2), mask=present[:, None])


@triton.jit
def _by_sign(query, factor_type: tl.constexpr):
    """Splits queries into what is multiplied with a page's maximum, and with its minimum."""
    query = query.to(tl.float32)
    return tl.maximum(query, 0.0).to(factor_type), tl.minimum(query, 0.0).to(factor_type)
