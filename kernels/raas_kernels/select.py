"""Device functions for choosing pages: the victim of a head, and the best-scored pages."""

import triton
import triton.language as tl

# Values of `Policy`; Triton reads globals only as constexpr.
RAAS = tl.constexpr(1)
WINDOW = tl.constexpr(2)
RANDOM = tl.constexpr(3)
H2O = tl.constexpr(4)
LARGEST = tl.constexpr(2**63 - 1)
# Of a share beside the largest one; less is none, as in `torch_scores`.
LEAST_LOG2 = tl.constexpr(-64)

_PAGES_OF_A_WARP = 512


def warps(num_pages: int) -> int:
    """Warps for the ``num_pages`` of one head: one, unless its registers would not hold them."""
    return int(max(1, min(16, triton.next_power_of_2(num_pages) // _PAGES_OF_A_WARP)))


@triton.jit
def page_hash(step, layer_id, head, pages):
    """Mixes step, layer, head and page to 32 bits."""
    x = step.to(tl.uint32) * 0x9E3779B1 + layer_id.to(tl.uint32) * 0x85EBCA77
    x = (x + head.to(tl.uint32) * 0xC2B2AE3D) + pages.to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def victim(
    policy,
    step,
    budget,
    layer_id,
    head,
    stamps,
    births,
    mass,
    pages,
    present,
    FADES: tl.constexpr,
    FLOOR: tl.constexpr,
):
    """Returns the page with the smallest priority; births make every priority unique.

    ``stamps``, ``births`` [N] int32 and ``mass`` [N] float32 are the state of one head; ``present``
    [N] tells which pages the budget has. With FADES a RaaS row goes by mass, not by stamps; FLOOR
    is the number of newest tokens that it keeps.
    """
    birth = births.to(tl.int64)
    # Non-negative floats sort like their bits.
    mass_bits = mass.to(tl.int32, bitcast=True).to(tl.int64)
    key = birth
    if policy == RAAS:
        recent = (births >= step - tl.minimum(FLOOR, budget // 2)).to(tl.int64)
        importance = mass_bits if FADES else stamps.to(tl.int64)
        key = (recent << 62) | (importance << 31) | birth
    elif policy == RANDOM:
        key = (page_hash(step, layer_id, head, pages).to(tl.int64) << 31) | birth
    elif policy == H2O:
        recent = (births > step - budget // 2).to(tl.int64)
        key = (recent << 62) | (mass_bits << 31) | birth
    key = tl.where(present, key, LARGEST)
    smallest = tl.min(key, axis=0)
    return tl.min(tl.where(key == smallest, pages, 2147483647), axis=0)


@triton.jit
def candidates(births_ptr, pages, held, first, PAGE_SIZE: tl.constexpr):
    """Marks the pages of one head that were full before step ``first``, of the ``held`` first ones.

    A page that later steps filled is stamped where its tokens are stored.
    """
    births = tl.load(births_ptr + pages, mask=pages < held, other=0)
    return (pages < held) & (births < first // PAGE_SIZE * PAGE_SIZE)


@triton.jit
def page_shares(scores, candidate, scaling_log2):
    """Softmax of the candidates' scores in base 2, [T, N] over N; zero for all others."""
    logits = tl.where(candidate, scores * scaling_log2, -3e38)
    logits -= tl.max(logits, axis=1, keep_dims=True)
    weights = tl.where(candidate & (logits > LEAST_LOG2), tl.exp2(logits), 0.0)
    # The largest weight is 1, so the maximum changes nothing unless there is no candidate.
    return weights / tl.maximum(tl.sum(weights, axis=1, keep_dims=True), 1.0)


@triton.jit
def top_pages(scores, candidate, count):
    """Marks the ``count`` candidates with the largest scores; ties go to the lower page.

    Finds a threshold bit by bit instead of sorting: 32 counts over registers, which stay cheap for
    large budgets where comparing every two pages would not.
    """
    bits = tl.where(scores == 0.0, 0.0, scores).to(tl.uint32, bitcast=True)  # -0.0 is no less
    # Unsigned integers in the order of the floats; 0, below them all, for whom nobody may choose.
    order = tl.where(bits >> 31 == 1, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    order = tl.where(candidate, order, 0)
    # Largest threshold that `count` candidates reach; 0 if there are fewer, and then all are above.
    threshold = tl.zeros((), tl.uint32)
    bit = tl.full((), 0x80000000, tl.uint32)
    for _ in range(32):
        reached = tl.sum((order >= (threshold | bit)).to(tl.int32), axis=0)
        threshold = tl.where(reached >= count, threshold | bit, threshold)
        bit = bit >> 1
    above = order > threshold
    equal = candidate & (order == threshold)
    room = count - tl.sum(above.to(tl.int32), axis=0)
    return above | (equal & (tl.cumsum(equal.to(tl.int32), axis=0) <= room))
