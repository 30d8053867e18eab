"""Device functions that choose among the tokens or pages of one head."""

import triton
import triton.language as tl

# Values of `Policy`; Triton reads globals only as constexpr.
RAAS = tl.constexpr(1)
RAAS_PAPER = tl.constexpr(2)
WINDOW = tl.constexpr(3)
RANDOM = tl.constexpr(4)
H2O = tl.constexpr(5)
# Above every key of `keys_of`.
TAKEN = tl.constexpr(2**63 - 1)


@triton.jit
def mixed(step, layer_id, head):
    """Mixes step, layer and head to 32 bits."""
    x = step.to(tl.uint32) * 0x9E3779B1 + layer_id.to(tl.uint32) * 0x85EBCA77
    x = x + head.to(tl.uint32) * 0xC2B2AE3D
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _order(values):
    """Returns uint32 in the order of the floats; a NaN is below all, and -0.0 is no less than 0."""
    values = tl.where(values == values, values, float("-inf"))
    bits = tl.where(values == 0.0, 0.0, values).to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 == 1, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def keys_of(values, places):
    """Returns int64 in the order of the values [N], then of the places, so one minimum finds both.

    The lower 31 bits are the place.
    """
    return (_order(values).to(tl.int64) << 31) | places.to(tl.int64)


@triton.jit
def place_of(key):
    """Returns the place in a key of `keys_of`."""
    return (key & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def largest(scores, candidate, count):
    """Marks the ``count`` candidates with the largest scores [N]; ties go to the lower place.

    Finds a threshold bit by bit instead of sorting: 32 counts over registers, which stay cheap for
    large budgets where comparing every two would not.
    """
    order = tl.where(candidate, _order(scores), 0)  # below them all who may not be chosen
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
