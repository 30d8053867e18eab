"""Device functions for one head: its page scores at some steps, and what they say of its pages."""

import triton
import triton.language as tl

from raas_kernels.select import page_shares, top_pages


@triton.jit
def score_head(
    scores_ptr,
    queries_ptr,
    cache,
    stride_key_cache,
    tokens,
    head,
    held,
    num_pages,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK_STEPS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    TILE_PAGES: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    SCORED_STEPS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Writes [SCORED_STEPS, num_pages] scores of the first ``held`` pages of one head."""
    factor_type = tl.float32 if WIDE else cache.dtype.element_ty
    dims, columns = tl.arange(0, BLOCK_DIM), tl.arange(0, BLOCK_STEPS * BLOCK_GROUP)
    inside, members = dims < HEAD_DIM, columns % BLOCK_GROUP
    asked = members < GROUP
    asked_dims = asked[None, :] & inside[:, None]
    of_head = head * HEAD_DIM + dims[None, :]
    # Queries of a block of steps, one in each column.
    of_query = (columns // BLOCK_GROUP * HEADS + head) * GROUP + members
    of_query = queries_ptr + of_query[None, :] * HEAD_DIM + dims[:, None]
    of_steps = scores_ptr + tl.arange(0, BLOCK_STEPS)[None, :] * num_pages
    if BLOCK_STEPS == SCORED_STEPS:
        above, below = _by_sign(tl.load(of_query, mask=asked_dims, other=0.0), factor_type)
    for first in range(0, held, TILE_PAGES):
        pages = first + tl.arange(0, TILE_PAGES)
        present = pages < held
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
                    of_query + begin * (HEADS * GROUP * HEAD_DIM), mask=asked_dims, other=0.0
                )
                above, below = _by_sign(query, factor_type)
            scores = tl.dot(high, above, input_precision="ieee")
            scores = tl.dot(low, below, scores, input_precision="ieee")
            scores = tl.where(asked[None, :], scores, float("-inf"))
            scores = tl.reshape(scores, (TILE_PAGES, BLOCK_STEPS, BLOCK_GROUP))
            here = of_steps + begin * num_pages + pages[:, None]
            tl.store(here, tl.max(scores, axis=2), mask=present[:, None])


@triton.jit
def _by_sign(query, factor_type: tl.constexpr):
    """Splits queries into what is multiplied with a page's maximum, and with its minimum."""
    query = query.to(tl.float32)
    return tl.maximum(query, 0.0).to(factor_type), tl.minimum(query, 0.0).to(factor_type)


@triton.jit
def note_use(
    scores_ptr,
    stamps_ptr,
    births_ptr,
    mass_ptr,
    last,
    held,
    first_known,
    stamp_pages,
    fade,
    scaling_log2,
    num_pages,
    BLOCK_PAGES: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    SCORED_STEPS: tl.constexpr,
    FADES: tl.constexpr,
):
    """Applies the rule to one step after the other up to ``last``, for the pages of one head."""
    pages = tl.arange(0, BLOCK_PAGES)
    # A page that these steps filled is stamped where its tokens are stored.
    first = last + 1 - SCORED_STEPS
    births = tl.load(births_ptr + pages, mask=pages < held, other=0)
    candidate = (pages < held) & (births < first // PAGE_SIZE * PAGE_SIZE)
    importance_ptr = mass_ptr if FADES else stamps_ptr
    importance = tl.load(importance_ptr + pages, mask=candidate, other=0)
    for place in range(SCORED_STEPS):
        known = candidate & (first + place >= first_known)
        scores = tl.load(scores_ptr + place * num_pages + pages, mask=known, other=0.0)
        if FADES:
            shares = page_shares(scores, known, scaling_log2)
            importance = tl.where(known, importance * fade + shares, importance)
        else:
            best = top_pages(scores, known, stamp_pages)
            importance = tl.where(best, first + place, importance)
    tl.store(importance_ptr + pages, importance, mask=candidate)
