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


def mcnemar(first: Sequence[bool], second: Sequence[bool], each: int = 1) -> tuple[int, int, float]:
    """Compares two methods on the same problems by the exact McNemar test.

    Problems of one message are answered in one text, so they are not independent. Then the messages
    are what is compared: their differences change sign in every way, of which McNemar's test is the
    case of one problem in a message.

    Args:
        first: Whether each problem was solved with one method.
        second: The same with the other.
        each: Problems of a message, which stand beside each other.

    Returns:
        Problems that only the first solved, that only the second solved, and the two-sided
        probability of a difference at least as large if neither were better.
    """
    apart = [int(a) - int(b) for a, b in zip(first, second, strict=True)]
    messages = [sum(apart[i : i + each]) for i in range(0, len(apart), each)]
    ways = {0: 1}  # by the sum of all differences
    differing = [abs(message) for message in messages if message]
    for difference in differing:
        changed: dict[int, int] = {}
        for total, count in ways.items():
            for after in (total - difference, total + difference):
                changed[after] = changed.get(after, 0) + count
        ways = changed
    seen = abs(sum(messages))
    extreme = sum(count for total, count in ways.items() if abs(total) >= seen)
    return apart.count(1), apart.count(-1), extreme / 2 ** len(differing)


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
