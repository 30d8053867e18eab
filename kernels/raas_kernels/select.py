"""Device functions that choose among the tokens or pages of one head."""

import triton
import triton.language as tl

# Values of `Policy`; Triton reads globals only as constexpr.
RAAS = tl.constexpr(1)
RAAS_PAPER = tl.constexpr(2)
WINDOW = tl.constexpr(3)
RANDOM = tl.constexpr(4)
H2O = tl.constexpr(5)


@triton.jit
def mixed(step, layer_id, head):
    """Mixes step, layer and head to 32 bits."""
    x = step.to(tl.uint32) * 0x9E3779B1 + layer_id.to(tl.uint32) * 0x85EBCA77
    x = x + head.to(tl.uint32) * 0xC2B2AE3D
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def smallest(values, places):
    """Returns the place of the smallest value [N], the lowest of them; a NaN is below all."""
    values = tl.where(values == values, values, float("-inf"))
    least = tl.min(values, axis=0)
    return tl.min(tl.where(values == least, places, 2147483647), axis=0)


@triton.jit
def largest(scores, candidate, count):
    """Marks the ``count`` candidates with the largest scores [N]; ties go to the lower place.

    Finds a threshold bit by bit instead of sorting: 32 counts over registers, which stay cheap for
    large budgets where comparing every two would not.
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
