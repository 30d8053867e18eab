"""Keeps the heavy hitters."""

import math
from collections.abc import Sequence

from raas_kernels import Policy
from raas_sglang.policies.policy import NaiveHead, PolicyInfo, Vector, dot


class NaiveH2O(NaiveHead):
    """Adds up the attention probability of each token; gives up the least of the older half."""

    place = 0

    def victim(self, step: int) -> int:
        """What was chosen after the step before."""
        return self.place

    def attend(self, step: int, queries: Sequence[Vector]) -> None:
        """Adds each token's probability, the mean over the query heads."""
        for query in queries:
            keys = [*self.prompt, *(token.key for token in self.tokens.values())]
            weights = [math.exp(self.scaling * dot(query, key)) for key in keys]
            shares = weights[len(self.prompt) :]
            for token, share in zip(self.tokens.values(), shares, strict=True):
                token.weight += share / sum(weights) / len(queries)

    def choices(self, step: int) -> list[tuple[float, int]]:
        """At every step, once the budget is full."""
        if step + 1 < self.budget:
            return []
        return sorted(
            (self.tokens[place].weight, place) for place in self.older(step, self.budget // 2)
        )

    def adopt(self, places: list[int]) -> None:
        """One place."""
        (self.place,) = places


POLICY = PolicyInfo(
    Policy.H2O,
    "Keeps the newest L/2 generated tokens, and of the older ones those that were attended most.",
    "the attention probability of each token, at every step",
    "H2O (arXiv 2306.14048), for each KV head",
    NaiveH2O,
)
