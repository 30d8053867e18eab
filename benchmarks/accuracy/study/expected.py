"""The attention to expect: what queries like those of late will want of each token."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.accuracy.study.attention import expected
from benchmarks.accuracy.study.gap import Gap
from benchmarks.accuracy.study.model import turned
from benchmarks.accuracy.study.residents import Residents
from benchmarks.accuracy.study.rule import Rule
from raas_kernels import Policy

LEAST_NORM = 1e-6


@dataclass
class Expected(Rule):
    """Expected attention of a Gaussian query, times the value's norm, less the age: the default.

    Mean and variance of each query head run over the queries of late, as attention sees them.

    Attributes:
        spread: Times the queries' variance; 0 for what gives a common key the bonus.
        bonus: Nats that the variance adds to a key that is as far from the mean key as the recent
            keys are on average.
        least: The smallest spread that this may take.
        most: The largest.
        memory: Steps in which the moments forget by e; they begin as plain means.
        recency: Times the logarithm of 1 + age / L.
        linear: Times age / L.
        every: 0 for the engine's period.
        ahead: 0 takes the queries as they were turned; else they are turned back, and their mean
            turned on to the mean of so many positions to come.
        whole: Whether sums are over the prompt's keys too.
        best: Whether the group's best head counts alone, not all of them.
        centred: Whether keys are taken from the mean of the recent keys: what all keys share shifts
            all logits alike, and changes no attention.
    """

    every: int = 0
    floor: float = 0.25
    spread: float = 0.0
    bonus: float = 4.0
    least: float = 1.0
    most: float = 8.0
    memory: float = 64.0
    recency: float = 0.0
    linear: float = 1.0
    ahead: int = 0
    whole: int = 0
    best: int = 0
    centred: int = 1

    def begin(self, residents: Residents) -> None:
        self.every = self.every or Policy.RAAS.period(residents.budget)
        super().begin(residents)
        shape = residents.queries.shape[2:]
        self._mean, self._variance = residents.track(*shape), residents.track(*shape)
        key = residents.model.heads, residents.model.size
        self._key, self._key_variance = residents.track(*key), residents.track(*key)

    def note(self, step: int, residents: Residents) -> None:
        super().note(step, residents)
        share = max(1 / (step + 1), 1 - math.exp(-1 / self.memory))
        queries = residents.live(residents.queries).float()
        if self.ahead:
            cos, sin = (_by_row(x) for x in residents.model.turns(residents.where()[1] + step))
            queries = turned(queries, cos, -sin)
        slot = residents.live(residents.slot)[..., None, None]
        keys = residents.live(residents.keys)
        key = keys.gather(3, slot.expand(*slot.shape[:-1], keys.shape[-1]))[..., 0, :].float()
        for x, mean, variance in (
            (queries, self._mean, self._variance),
            (key, self._key, self._key_variance),
        ):
            apart = x - residents.live(mean)
            residents.live(mean).add_(share * apart)
            residents.live(variance).add_(share * apart.square()).mul_(1 - share)

    def importance(self, step: int, residents: Residents) -> Tensor:
        mean, variance = residents.live(self._mean), residents.live(self._variance)
        if self.ahead:
            mean, variance = self._turned_on(step, mean, variance, residents)
        scale = residents.model.scale
        half_variance = variance * (0.5 * scale**2)
        found, lse = expected(
            mean * scale,
            half_variance * (self.spread or self._spread(half_variance, residents)),
            residents.live(self._key) * self.centred,
            residents.keys,
            residents.prompts.keys,
            residents.where(),
            residents.budget,
            bool(self.whole),
        )
        shares = found - lse[..., None]
        of_group = shares.amax(3) if self.best else shares.logsumexp(3)
        age = (step - residents.live(residents.birth)) / residents.budget
        norms = residents.live(residents.norms).clamp(min=LEAST_NORM)
        return of_group + norms.log() - self.recency * age.log1p() - self.linear * age

    def _spread(self, half_variance: Tensor, residents: Residents) -> Tensor:
        """Of each query head, [layers, rows, H, G, 1]."""
        of_keys = residents.live(self._key_variance)[..., None, :]
        common = (half_variance * of_keys).sum(-1, keepdim=True)
        return (self.bonus / common.clamp(min=1e-30)).clamp(self.least, self.most)

    def _turned_on(
        self, step: int, mean: Tensor, variance: Tensor, residents: Residents
    ) -> tuple[Tensor, Tensor]:
        """The mean turned to the mean of the positions to come; both of a pair vary alike then."""
        model = residents.model
        steps = torch.arange(1, self.ahead + 1, device=mean.device)
        here, on = model.turns(residents.where()[1] + step), model.turns(steps)
        mean_cos, mean_sin = (x.mean(0) for x in on)
        cos = here[0] * mean_cos - here[1] * mean_sin
        sin = here[1] * mean_cos + here[0] * mean_sin
        half = variance.unflatten(-1, (2, -1)).mean(-2)
        return turned(mean, _by_row(cos), _by_row(sin)), torch.cat([half, half], -1)


@dataclass
class ExpectedAttention(Expected):
    """The plain Gaussian over the next 512 positions (Expected Attention, arXiv 2510.00636)."""

    floor: float = 0.5
    spread: float = 1.0
    linear: float = 0.0
    ahead: int = 512
    whole: int = 1
    centred: int = 0


@dataclass
class ExpectedGap(Expected, Gap):
    """`Expected` less `Gap`."""

    weight: float = 1.0

    def importance(self, step: int, residents: Residents) -> Tensor:
        gap = Gap.importance(self, step, residents)
        return super().importance(step, residents) + self.weight * gap


def _by_row(x: Tensor) -> Tensor:
    """Lets [rows, D / 2] meet queries [layers, rows, H, G, D]."""
    return x[None, :, None]
