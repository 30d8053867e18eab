"""Device functions for choosing pages: the victim of a head, and the best-scored pages."""

import triton
import triton.language as tl

# Values of `Policy`; Triton reads globals only as constexpr.
RAAS = tl.constexpr(1)
WINDOW = tl.constexpr(2)
RANDOM = tl.constexpr(3)
H2O = tl.constexpr(4)
LARGEST = tl.constexpr(2**63 - 1)


@triton.jit
def page_hash(step, layer_id, head, pages):
    """Mixes step, layer, head and page to 32 bits."""
    x = step.to(tl.uint32) * 0x9E3779B1 + layer_id.to(tl.uint32) * 0x85EBCA77
    x = (x + head.to(tl.uint32) * 0xC2B2AE3D) + pages.to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def victim(policy, step, budget, layer_id, head, stamps, births, mass, pages, present):
    """Returns the page with the smallest priority; births make every priority unique.

    ``stamps``, ``births`` [N] int32 and ``mass`` [N] float32 are the state of one head; ``present``
    [N] tells which pages the budget has.
    """
    birth = births.to(tl.int64)
    key = birth
    if policy == RAAS:
        key = (stamps.to(tl.int64) << 31) | birth
    elif policy == RANDOM:
        key = (page_hash(step, layer_id, head, pages).to(tl.int64) << 31) | birth
    elif policy == H2O:
        recent = (births > step - budget // 2).to(tl.int64)
        # Non-negative floats sort like their bits.
        key = (recent << 62) | (mass.to(tl.int32, bitcast=True).to(tl.int64) << 31) | birth
    key = tl.where(present, key, LARGEST)
    smallest = tl.min(key, axis=0)
    return tl.min(tl.where(key == smallest, pages, 2147483647), axis=0)


@triton.jit
def top_pages(scores, candidate, count):
    """Marks the ``count`` candidates with the largest scores; ties go to the lower page.

    Bisects the ordered bits of the scores instead of sorting: 32 passes over registers.
    """
    bits = scores.to(tl.int32, bitcast=True)
    order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    order = tl.where(candidate, order, -2147483649)
    low = tl.full((), -2147483648, tl.int64)
    high = tl.full((), 2147483648, tl.int64)
    # Largest threshold that at least `count` candidates reach, or the smallest value of all.
    for _ in range(32):
        middle = (low + high) >> 1
        enough = tl.sum((order >= middle).to(tl.int32), axis=0) >= count
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    above = candidate & (order > low)
    equal = candidate & (order == low)
    room = count - tl.sum(above.to(tl.int32), axis=0)
    return above | (equal & (tl.cumsum(equal.to(tl.int32), axis=0) <= room))
