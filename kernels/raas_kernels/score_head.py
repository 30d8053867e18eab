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
def stamp_best(
    scores_ptr,
    stamps_ptr,
    pages,
    candidate,
    first,
    first_known,
    stamp_pages,
    num_pages,
    SCORED_STEPS: tl.constexpr,
):
    """Gives each step's timestamp to the candidates that scored best in it."""
    stamps = tl.load(stamps_ptr + pages, mask=candidate, other=0)
    for place in range(SCORED_STEPS):
        known = candidate & (first + place >= first_known)
        scores = tl.load(scores_ptr + place * num_pages + pages, mask=known, other=0.0)
        stamps = tl.where(top_pages(scores, known, stamp_pages), first + place, stamps)
    tl.store(stamps_ptr + pages, stamps, mask=candidate)


@triton.jit
def gather_shares(
    scores_ptr,
    mass_ptr,
    pages,
    candidate,
    first,
    first_known,
    fade_log2,
    scaling_log2,
    num_pages,
    SCORED_STEPS: tl.constexpr,
    SHARED_STEPS: tl.constexpr,
):
    """Lets the candidates' mass fade at each step and gain their share of it.

    All steps of a block at once, since a softmax waits for all threads: what a share has faded by
    at the end of the block is known before.
    """
    mass = tl.load(mass_ptr + pages, mask=candidate, other=0.0)
    places = tl.arange(0, SHARED_STEPS)
    faded = tl.exp2((SHARED_STEPS - 1 - places).to(tl.float32) * fade_log2)
    for begin in range(0, SCORED_STEPS, SHARED_STEPS):
        steps = first + begin + places
        # Of a request that was interrupted the first steps may be unknown.
        asked = steps >= first_known
        known = candidate[None, :] & asked[:, None]
        here = (begin + places)[:, None] * num_pages + pages[None, :]
        scores = tl.load(scores_ptr + here, mask=known, other=0.0)
        shares = page_shares(scores, known, scaling_log2)
        passed = tl.sum(asked.to(tl.float32), axis=0)
        mass = mass * tl.exp2(passed * fade_log2) + tl.sum(shares * faded[:, None], axis=0)
    tl.store(mass_ptr + pages, mass, mask=candidate)
