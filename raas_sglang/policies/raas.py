"""Keeps the milestones that queries like the recent ones expect to use again."""

import math
from collections.abc import Iterable, Sequence

from raas_kernels import Policy
from raas_sglang.policies.policy import NaiveHead, PolicyInfo, Vector, dot

_MEMORY = 64  # steps
_BONUS = 4.0  # nats
_LEAST_SPREAD, _LARGEST_SPREAD = 1.0, 8.0
_AGEING = 1.0


class NaiveRaas(NaiveHead):
    """Gives up the tokens that queries like the recent ones expect least of.

    Every few steps, for as many tokens at once; the newest quarter of the budget is spared.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.places: list[int] = []
        self.seen = 0
        # Of each query head, and at the end of the keys.
        self.means: list[list[float]] = []
        self.squares: list[list[float]] = []

    def victim(self, step: int) -> int:
        """The next of those that were chosen together."""
        return self.places.pop(0)

    def attend(self, step: int, queries: Sequence[Vector]) -> None:
        """Moves means of queries, keys and their squares on: plain at first, then forgetful."""
        self.seen += 1
        share = max(1 / self.seen, 1 - math.exp(-1 / _MEMORY))
        (key,) = (token.key for token in self.tokens.values() if token.birth == step)
        vectors = [*queries, key]
        self.means = self.means or [[0.0] * len(vector) for vector in vectors]
        self.squares = self.squares or [[0.0] * len(vector) for vector in vectors]
        for mean, square, vector in zip(self.means, self.squares, vectors, strict=True):
            mean[:] = [m + share * (x - m) for m, x in zip(mean, vector, strict=True)]
            square[:] = [s + share * (x * x - s) for s, x in zip(square, vector, strict=True)]

    def importance(self, step: int) -> dict[int, float]:
        """Logarithm of what the query heads expect of each token, its value's norm and its age."""
        shares = dict.fromkeys(self.tokens, -math.inf)
        *means, mean_key = self.means
        *variances, of_keys = (
            [s - m * m for m, s in zip(mean, square, strict=True)]
            for mean, square in zip(self.means, self.squares, strict=True)
        )
        for mean, variance in zip(means, variances, strict=True):
            common = self.scaling**2 / 2 * dot(variance, of_keys)
            spread = min(max(_BONUS / max(common, 1e-30), _LEAST_SPREAD), _LARGEST_SPREAD)
            logits = {}
            for place, token in self.tokens.items():
                apart = [x - m for x, m in zip(token.key, mean_key, strict=True)]
                bonus = self.scaling**2 / 2 * dot(variance, [x * x for x in apart])
                logits[place] = self.scaling * dot(mean, token.key) + spread * bonus
            total = _log_sum(logits.values())
            for place, logit in logits.items():
                shares[place] = _log_sum([shares[place], logit - total])
        return {
            place: share
            + math.log(math.sqrt(dot(token.value, token.value)))
            - _AGEING * (step + 1 - token.birth) / self.budget
            for (place, share), token in zip(shares.items(), self.tokens.values(), strict=True)
        }

    def choices(self, step: int) -> list[tuple[float, int]]:
        """At the last step of each period, from the last step on that found a free place."""
        if step + 1 < self.budget or (step + 1) % Policy.RAAS.period(self.budget):
            return []
        importance = self.importance(step)
        return sorted((importance[place], place) for place in self.older(step, self.budget // 4))

    def adopt(self, places: list[int]) -> None:
        """As many as the period has steps."""
        self.places = list(places)


def _log_sum(logarithms: Iterable[float]) -> float:
    """Logarithm of a sum, given those of its parts."""
    parts = list(logarithms)
    peak = max(parts)
    return peak + math.log(sum(math.exp(part - peak) for part in parts))


POLICY = PolicyInfo(
    Policy.RAAS,
    "Keeps the newest L/4 generated tokens, and of the older ones the milestones that queries "
    "like the recent ones are expected to use.",
    "mean and variance of the recent queries and keys, the norm of each value",
    "RaaS's budget and milestones (arXiv 2502.11147); the score is close to Expected Attention "
    "(arXiv 2510.00636), learned as the request goes",
    NaiveRaas,
)
