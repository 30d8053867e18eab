"""Which tokens a head used, as far as its policy notes it: what the page calls a use."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from raas_sglang.trace import TokenTable

Used = NDArray[np.bool_]


def noted_uses(policy: str) -> "Callable[[TokenTable, TokenTable | None, int], Used] | None":
    """How to tell which tokens were used, from two samples of a request.

    Args:
        policy: Its name.

    Returns:
        A function of the table, of the one before (None for the first) and of that one's step; it
        returns [Y, H, K]. None for a policy that notes no uses.
    """
    return _RULES.get(policy)


def _expected(table: TokenTable, before: TokenTable | None, step: int) -> Used:
    """More was expected of it than of the mean token when the head's tokens were scored last."""
    scored = table.weights != 0
    shares = np.exp(table.weights) * scored
    count = np.maximum(np.count_nonzero(scored, axis=2, keepdims=True), 1)
    used: Used = shares > shares.sum(2, keepdims=True) / count
    return used


def _stamped(table: TokenTable, before: TokenTable | None, step: int) -> Used:
    """Its page was among the most attended half since the sample before."""
    used: Used = table.weights > step
    return used


def _attended(table: TokenTable, before: TokenTable | None, step: int) -> Used:
    """It gathered more attention since the sample before than the mean token did."""
    gained = table.weights.copy()
    if before is not None:
        places = before.births.shape[2]
        stayed = table.births[..., :places] == before.births
        gained[..., :places] -= np.where(stayed, before.weights, 0)
    used: Used = gained > gained.mean(2, keepdims=True)
    return used


_RULES = {"raas": _expected, "raas-paper": _stamped, "h2o": _attended}
