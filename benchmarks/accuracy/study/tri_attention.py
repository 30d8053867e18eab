"""TriAttention's rule: what the model's mean query wants of a key at the distances to come."""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.accuracy.study.model import turned
from benchmarks.accuracy.study.residents import Residents
from benchmarks.accuracy.study.rule import Rule


@dataclass
class TriAttention(Rule):
    """A trigonometric series of the distance, and the keys' norms (arXiv 2604.04921).

    The paper takes the statistics of the queries from other text beforehand. Here they are those of
    all answers of the run so far, which is text of the same kind, so the rule is at its best.

    Attributes:
        furthest: Largest distance of the powers of two over which the series is averaged.
    """

    every: int = 4
    furthest: int = 65536

    def begin(self, residents: Residents) -> None:
        super().begin(residents)
        # Of all rows together, before RoPE: the queries, and the length of each rotary pair.
        self._mean = torch.zeros_like(residents.queries[:, 0], dtype=torch.float32)
        self._length = self._mean[..., : self._mean.shape[-1] // 2].clone()
        self._seen = 0

    def note(self, step: int, residents: Residents) -> None:
        cos, sin = _heads(residents.model.turns(residents.where()[1] + step))
        queries = turned(residents.live(residents.queries).float(), cos, -sin)
        self._seen += queries.shape[1]
        share = queries.shape[1] / self._seen
        self._mean.lerp_(queries.mean(1), share)
        self._length.lerp_(_lengths(queries).mean(1), share)

    def importance(self, step: int, residents: Residents) -> Tensor:
        positions, model = residents.where()[1] + step, residents.model
        powers = 2 ** torch.arange(self.furthest.bit_length(), device=positions.device)
        # Turning is linear: the mean over the distances is a turn by their mean cosine and sine.
        here, on = model.turns(positions), [x.mean(0) for x in model.turns(powers)]
        cos, sin = _heads((here[0] * on[0] - here[1] * on[1], here[1] * on[0] + here[0] * on[1]))
        spread = self._length - _lengths(self._mean)
        found = []
        for layer, keys in enumerate(residents.live(residents.keys)):
            mean = self._mean[layer].expand(len(keys), *self._mean.shape[1:])
            wanted = turned(mean, cos[0], sin[0]) @ keys.float().transpose(-2, -1)
            wanted += spread[layer] @ _lengths(keys.float()).transpose(-2, -1)
            away = wanted - wanted.mean(-1, keepdim=True)
            found.append((away / wanted.std(-1, correction=0, keepdim=True)).amax(2))
        return torch.stack(found)


def _heads(turns: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Lets angles [rows, D / 2] meet vectors [layers, rows, H, G, D] in `turned`."""
    return turns[0][None, :, None], turns[1][None, :, None]


def _lengths(x: Tensor) -> Tensor:
    """Lengths of the rotary pairs, [..., D / 2] of vectors [..., D]."""
    low, high = x.chunk(2, -1)
    return torch.hypot(low, high)
