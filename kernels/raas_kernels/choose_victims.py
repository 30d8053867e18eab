"""Device functions for one head: what each policy makes of its logits, and what it gives up.

All take the logits [N, BLOCK_GROUP] of the head's ``held`` tokens, the state of the head and where
to put the places that it gives up next. Latency is what they cost, so they take many tokens at a
time, and look for value and place of the least in one reduction.
"""

import triton
import triton.language as tl

from raas_kernels.layout import AGEING, PAPER_PAGE
from raas_kernels.select import TAKEN, keys_of, largest, place_of

_PAPER_PAGE = tl.constexpr(PAPER_PAGE)
_AGEING = tl.constexpr(AGEING)
_NOT_ASKED = tl.constexpr(-1e38)


@triton.jit
def _block(
    logits_ptr, begin, held, GROUP: tl.constexpr, BLOCK_GROUP: tl.constexpr, TOKENS: tl.constexpr
):
    """Returns places, which of them are held, and their logits [TOKENS, BLOCK_GROUP]."""
    places, members = begin + tl.arange(0, TOKENS), tl.arange(0, BLOCK_GROUP)
    present = places < held
    here = places[:, None] * BLOCK_GROUP + members[None, :]
    mask = present[:, None] & (members < GROUP)[None, :]
    return places, present, tl.load(logits_ptr + here, mask=mask, other=_NOT_ASKED)


@triton.jit
def raas_victims(
    logits_ptr,
    normaliser_ptr,
    scores_ptr,
    births_ptr,
    weights_ptr,
    value_norms_ptr,
    victims_ptr,
    step,
    budget,
    held,
    period,
    GROUP: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):
    """Gives up the ``period`` least important tokens; spares the newest quarter of the budget.

    Importance is a logarithm: of the sum of the shares that the query heads expect of the token,
    of its value's norm, and of its age.
    """
    normaliser = tl.load(normaliser_ptr + tl.arange(0, BLOCK_GROUP))
    for begin in range(0, held, TOKENS):
        places, present, logits = _block(logits_ptr, begin, held, GROUP, BLOCK_GROUP, TOKENS)
        shares = logits - normaliser[None, :]
        peak = tl.max(shares, axis=1)
        share = peak + tl.log(tl.sum(tl.exp(shares - peak[:, None]), axis=1))
        norms = tl.load(value_norms_ptr + places, mask=present, other=1.0)
        born = tl.load(births_ptr + places, mask=present, other=0)
        age = (step + 1 - born).to(tl.float32) / budget
        importance = share + tl.log(tl.maximum(norms, 1e-30)) - _AGEING * age
        tl.store(weights_ptr + places, importance, mask=present)
        older = born < step + 1 - budget // 4
        tl.store(scores_ptr + places, tl.where(older, importance, float("inf")), mask=present)
    tl.debug_barrier()  # other threads wrote the scores
    places = tl.arange(0, BLOCK_TOKENS)
    scores = tl.load(scores_ptr + places, mask=places < held, other=float("inf"))
    keys = keys_of(scores, places)
    for turn in range(0, period):
        least = tl.min(keys, axis=0)
        tl.store(victims_ptr + turn, place_of(least))
        keys = tl.where(keys == least, TAKEN, keys)


@triton.jit
def paper_victim(
    logits_ptr,
    scores_ptr,
    births_ptr,
    weights_ptr,
    victims_ptr,
    step,
    budget,
    held,
    GROUP: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):
    """Stamps the best half of the pages; once a page is full, gives up the oldest timestamp's.

    A page's score is the largest logit of its tokens. The page being filled bears the newest
    timestamp anyway.
    """
    for begin in range(0, held, TOKENS):
        places, present, logits = _block(logits_ptr, begin, held, GROUP, BLOCK_GROUP, TOKENS)
        tl.store(scores_ptr + places, tl.max(logits, axis=1), mask=present)
    tl.debug_barrier()  # other threads wrote the scores
    PAGES: tl.constexpr = BLOCK_TOKENS // _PAPER_PAGE
    places = tl.arange(0, BLOCK_TOKENS)
    scores = tl.load(scores_ptr + places, mask=places < held, other=float("-inf"))
    stamps = tl.load(weights_ptr + places, mask=places < held, other=0.0)
    pages = tl.arange(0, PAGES)
    full = (pages + 1) * _PAPER_PAGE <= held
    births = tl.load(births_ptr + pages * _PAPER_PAGE, mask=full, other=0)
    candidate = full & (births < step // _PAPER_PAGE * _PAPER_PAGE)
    best = tl.max(tl.reshape(scores, (PAGES, _PAPER_PAGE)), axis=1)
    best = largest(best, candidate, tl.maximum(budget // _PAPER_PAGE // 2, 1))
    of_pages = tl.reshape(stamps, (PAGES, _PAPER_PAGE))
    of_pages = tl.where(best[:, None], step.to(tl.float32), of_pages)
    tl.store(weights_ptr + places, tl.reshape(of_pages, (BLOCK_TOKENS,)), mask=places < held)
    if (step + 1 >= budget) & ((step + 1) % _PAPER_PAGE == 0):
        dates = tl.max(of_pages, axis=1).to(tl.int64)
        # Ties to the page that was born first.
        oldest = tl.where(full, (dates << 31) | births.to(tl.int64), 2**62)
        least = tl.min(oldest, axis=0)
        tl.store(victims_ptr, tl.min(tl.where(oldest == least, pages, 2147483647), axis=0))


@triton.jit
def h2o_victim(
    logits_ptr,
    normaliser_ptr,
    births_ptr,
    weights_ptr,
    victims_ptr,
    step,
    budget,
    held,
    GROUP: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):
    """Adds what attention gave to each token; gives up the least of all; spares the newest half."""
    normaliser = tl.load(normaliser_ptr + tl.arange(0, BLOCK_GROUP))
    for begin in range(0, held, TOKENS):
        places, present, logits = _block(logits_ptr, begin, held, GROUP, BLOCK_GROUP, TOKENS)
        given = tl.exp(logits - normaliser[None, :])
        mass = tl.load(weights_ptr + places, mask=present, other=0.0)
        tl.store(weights_ptr + places, mass + tl.sum(given, axis=1) / GROUP, mask=present)
    tl.debug_barrier()  # other threads wrote the masses
    places = tl.arange(0, BLOCK_TOKENS)
    mass = tl.load(weights_ptr + places, mask=places < held, other=0.0)
    births = tl.load(births_ptr + places, mask=places < held, other=0)
    older = (places < held) & (births < step + 1 - budget // 2)
    keys = keys_of(tl.where(older, mass, float("inf")), places)
    tl.store(victims_ptr, place_of(tl.min(keys, axis=0)))
