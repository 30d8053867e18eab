"""Bounds of all pages against the queries of some steps, and what they say, in one launch.

Quest's bound of q·k over a page, ``sum_d max(q * low, q * high)``, is two matrix products, because
``low <= high``: ``high @ max(q, 0) + low @ min(q, 0)``. The products of 16-bit numbers are exact in
float32, which they are summed in. Minimum and maximum are taken from the key cache itself, so pages
of any size cost no memory, and all queries that came while a page was filled are scored at once, so
the cache is read once for them: ``L`` keys of each head and layer, for a row that is due. That read
is the cost. The queries of all steps are the columns of one product.

The programs are as many as a GPU runs at a time. Each takes one KV head of one row and layer after
the other, and keeps its scores in scratch of its own until it has noted what they say.
"""

import math

import triton
import triton.language as tl

from raas_kernels.due_rows import list_due_rows
from raas_kernels.layout import (
    ALIGNMENT,
    DecodeBatch,
    EvictionBuffers,
    KeyCaches,
    ScoreScratch,
    StepOptions,
)
from raas_kernels.score_head import gather_shares, score_head, stamp_best
from raas_kernels.select import candidates

_TILE_PAGES = 64  # of 16-bit numbers; of wider ones fewer fit
_COLUMNS = 64  # queries of one product, of 16-bit numbers as well
_SHARED_SCORES = 2048  # of one softmax: more would not fit into the registers
_ALIGNMENT = tl.constexpr(ALIGNMENT)
_LOG2_E = 1.4426950408889634


def score_pages(
    scratch: ScoreScratch,
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
    _require_layout(scratch, keys, rows, buffers, options)
    query_heads, head_dim = buffers.queries.shape[3:]
    halves = cache.element_size() // 2
    group = query_heads // heads
    members = max(triton.next_power_of_2(group), 16 // steps)
    block_pages = triton.next_power_of_2(num_pages)
    list_due_rows(scratch, batch, options)
    _score_pages_kernel[(min(scratch.scores.shape[0], rows * layers * heads),)](
        scratch.due_rows,
        scratch.due_count,
        scratch.scores,
        buffers.queries,
        keys.pointers,
        cache,
        batch.req_pool_indices,
        batch.positions,
        batch.kv_indptr,
        batch.kv_indices,
        *batch.requests[1:],
        *buffers[:3],
        0.0 if options.fade is None else math.log2(options.fade),
        options.scaling * _LOG2_E,
        slots,
        layers,
        num_pages,
        cache.stride(0),
        HEADS=heads,
        GROUP=group,
        BLOCK_GROUP=members,
        BLOCK_STEPS=min(steps, max(1, _COLUMNS // halves // members)),
        HEAD_DIM=head_dim,
        BLOCK_DIM=max(16, triton.next_power_of_2(head_dim)),
        TILE_PAGES=min(_TILE_PAGES // halves, max(16, block_pages)),
        BLOCK_PAGES=block_pages,
        PAGE_SIZE=options.page_size,
        SCORED_STEPS=steps,
        SHARED_STEPS=max(1, min(steps, _SHARED_SCORES // block_pages)),
        FADES=options.fade is not None,
        # The interpreter would multiply the bits of bfloat16.
        WIDE=cache.device.type == "cpu",
        num_warps=4,
    )


def _require_layout(
    scratch: ScoreScratch,
    keys: KeyCaches,
    rows: int,
    buffers: EvictionBuffers,
    options: StepOptions,
) -> None:
    layers, slots, _, num_pages = buffers.stamps.shape
    query_heads, head_dim = buffers.queries.shape[3:]
    cache, steps = keys.layers[0], options.scored_steps
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
    if scratch.due_rows.shape[0] < rows or scratch.scores.shape[0] == 0:
        raise ValueError(
            f"scratch must be for {rows} rows and for some programs, got "
            f"{scratch.due_rows.shape[0]} and {scratch.scores.shape[0]}"
        )
    for tensor, name, shape in (
        (buffers.queries, "queries", (layers, slots, steps, query_heads, head_dim)),
        (scratch.scores, "scores", (scratch.scores.shape[0], steps, num_pages)),
    ):
        if tensor.shape != shape or not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous {shape}, got {tuple(tensor.shape)} "
                f"with strides {tensor.stride()}"
            )


@triton.jit
def _score_pages_kernel(
    due_rows_ptr,
    due_count_ptr,
    scores_ptr,
    queries_ptr,
    pointers_ptr,
    key_cache_ptr,
    req_pool_indices_ptr,
    positions_ptr,
    kv_indptr_ptr,
    kv_indices_ptr,
    prompt_lens_ptr,
    budgets_ptr,
    stamp_pages_ptr,
    first_steps_ptr,
    stamps_ptr,
    births_ptr,
    mass_ptr,
    fade_log2,
    scaling_log2,
    num_slots,
    num_layers,
    num_pages,
    stride_key_cache,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK_STEPS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    TILE_PAGES: tl.constexpr,
    BLOCK_PAGES: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    SCORED_STEPS: tl.constexpr,
    SHARED_STEPS: tl.constexpr,
    FADES: tl.constexpr,
    WIDE: tl.constexpr,
):
    scores_ptr += tl.program_id(0).to(tl.int64) * (SCORED_STEPS * num_pages)
    count = tl.load(due_count_ptr) * num_layers * HEADS
    for item in range(tl.program_id(0), count, tl.num_programs(0)):
        head = item % HEADS
        layer = (item // HEADS % num_layers).to(tl.int64)
        row = tl.load(due_rows_ptr + item // HEADS // num_layers)
        slot = tl.load(req_pool_indices_ptr + row).to(tl.int64)
        prompt_len = tl.load(prompt_lens_ptr + row)
        last = tl.load(positions_ptr + row).to(tl.int32) - prompt_len
        held = tl.minimum(last // PAGE_SIZE + 1, tl.load(budgets_ptr + row) // PAGE_SIZE)
        tokens = kv_indices_ptr + tl.load(kv_indptr_ptr + row).to(tl.int64) + prompt_len
        owner = layer * num_slots + slot
        # Only the type of this pointer is used: the layers' caches are tensors of their own. That
        # they are aligned cannot be seen, and without it keys would be loaded one by one.
        cache = tl.load(pointers_ptr + layer).to(tl.pointer_type(key_cache_ptr.dtype.element_ty))
        score_head(
            scores_ptr, queries_ptr + owner * (SCORED_STEPS * HEADS * GROUP * HEAD_DIM),
            tl.multiple_of(cache, _ALIGNMENT), stride_key_cache, tokens, head, held, num_pages,
            HEADS, GROUP, BLOCK_GROUP, BLOCK_STEPS, HEAD_DIM, BLOCK_DIM, TILE_PAGES, PAGE_SIZE,
            SCORED_STEPS, WIDE,
        )  # fmt: skip
        tl.debug_barrier()  # other threads wrote the scores
        state = (owner * HEADS + head) * num_pages
        pages, first = tl.arange(0, BLOCK_PAGES), last + 1 - SCORED_STEPS
        candidate = candidates(births_ptr + state, pages, held, first, PAGE_SIZE)
        first_known = tl.load(first_steps_ptr + row)
        if FADES:
            gather_shares(
                scores_ptr, mass_ptr + state, pages, candidate, first, first_known,
                fade_log2, scaling_log2, num_pages, SCORED_STEPS, SHARED_STEPS,
            )  # fmt: skip
        else:
            stamp_best(
                scores_ptr, stamps_ptr + state, pages, candidate, first, first_known,
                tl.load(stamp_pages_ptr + row), num_pages, SCORED_STEPS,
            )  # fmt: skip
        tl.debug_barrier()  # and have read them before they are written again
