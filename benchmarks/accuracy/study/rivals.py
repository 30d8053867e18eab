"""Rules of other papers, with the prompt kept whole as all rules keep it here."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d, normalize

from benchmarks.accuracy.study.residents import Residents
from benchmarks.accuracy.study.rule import Rule


@dataclass
class Tova(Rule):
    """The least attended of this step goes, in all heads of a layer alike (arXiv 2401.06104)."""

    floor: float = 0.0
    statistics = True

    def importance(self, step: int, residents: Residents) -> Tensor:
        mass = residents.live(residents.statistics.mass)
        return mass.sum(2, keepdim=True).expand_as(mass)


@dataclass
class SnapKV(Rule):
    """Attention of the last ``window`` queries, pooled over neighbours (arXiv 2404.14469)."""

    every: int = 4
    window: int = 32
    pool: int = 7
    statistics = True

    def begin(self, residents: Residents) -> None:
        super().begin(residents)
        self._recent = residents.track(residents.model.heads, residents.budget, self.window)

    def place(self, step: int, residents: Residents) -> None:
        super().place(step, residents)
        at = residents.live(residents.slot)[..., None, None].expand(-1, -1, -1, 1, self.window)
        residents.live(self._recent).scatter_(3, at, 0.0)

    def note(self, step: int, residents: Residents) -> None:
        residents.live(self._recent)[..., step % self.window] = self.attention(residents)

    def attention(self, residents: Residents) -> Tensor:
        """Returns what of a step's attention counts."""
        return residents.live(residents.statistics.mass)

    def importance(self, step: int, residents: Residents) -> Tensor:
        mean = residents.live(self._recent).mean(-1)
        order = residents.live(residents.birth).argsort(-1)
        by_birth = mean.gather(-1, order).flatten(0, 2)[:, None]
        pooled = max_pool1d(by_birth, self.pool, 1, self.pool // 2).view_as(mean)
        return torch.zeros_like(mean).scatter_(-1, order, pooled)


@dataclass
class RKV(SnapKV):
    """The same with 8 queries, less what later keys repeat (R-KV, arXiv 2505.24133)."""

    window: int = 8
    weight: float = 0.1  # of attention
    threshold: float = 0.5  # of the cosine from which keys are alike

    def attention(self, residents: Residents) -> Tensor:
        return residents.live(residents.statistics.own)

    def importance(self, step: int, residents: Residents) -> Tensor:
        attention = super().importance(step, residents)
        births = residents.live(residents.birth)
        repeated = [
            self._redundancy(keys.float(), birth)
            for keys, birth in zip(residents.live(residents.keys), births, strict=True)
        ]
        return self.weight * attention - (1 - self.weight) * torch.stack(repeated)

    def _redundancy(self, keys: Tensor, birth: Tensor) -> Tensor:
        """Softmax of each key's mean cosine to the others; the newest alike of each is spared."""
        unit = normalize(keys, dim=-1)
        cosine = unit @ unit.transpose(-2, -1)
        cosine.diagonal(dim1=-2, dim2=-1).fill_(0)
        born = birth[..., None, :].expand_as(cosine)
        newest = torch.where(cosine > self.threshold, born, -1.0).amax(-1, keepdim=True)
        cosine = cosine.masked_fill(born == newest, 0.0)
        return cosine.mean(-2).softmax(-1)
