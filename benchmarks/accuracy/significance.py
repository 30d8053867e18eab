"""Intervals of shares, means of texts, and tests of two methods on the same problems."""

import math
from collections.abc import Sequence


def wilson(right: int, total: int) -> tuple[float, float]:
    """Returns the Wilson 95 % interval of a share."""
    z, share = 1.959964, right / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return (centre - spread) / scale, (centre + spread) / scale


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int, float]:
    """Compares two methods on the same problems by the exact McNemar test.

    Args:
        first: Whether each problem was solved with one method.
        second: The same with the other.

    Returns:
        Problems that only the first solved, that only the second solved, and the two-sided
        probability of a difference at least as large if neither were better.
    """
    pairs = list(zip(first, second, strict=True))
    only_first = sum(a and not b for a, b in pairs)
    only_second = sum(b and not a for a, b in pairs)
    apart = only_first + only_second
    tail = sum(math.comb(apart, k) for k in range(min(only_first, only_second) + 1))
    return only_first, only_second, min(1.0, 2 * tail / 2**apart)


def ratio(sums: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """Returns the mean over all tokens of all texts, and its standard error over texts.

    Args:
        sums: What each text adds up to.
        counts: Its tokens.
    """
    total, n = sum(counts), len(counts)
    mean = sum(sums) / total
    squares = sum((x - mean * count) ** 2 for x, count in zip(sums, counts, strict=True))
    return mean, math.sqrt(squares * n / (n - 1)) / total if n > 1 else math.inf
