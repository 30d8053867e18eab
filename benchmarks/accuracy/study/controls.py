"""Rules that stand in the engine already: controls, heavy hitters and RaaS as published."""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.accuracy.study.residents import Residents
from benchmarks.accuracy.study.rule import Rule


@dataclass
class Window(Rule):
    """The newest tokens stay (StreamingLLM, arXiv 2309.17453; the prompt is the sink)."""

    floor: float = 0.0

    def importance(self, step: int, residents: Residents) -> Tensor:
        return residents.live(residents.birth)


@dataclass
class Random(Rule):
    """Any token may go: the control that knows nothing."""

    seed: int = 7

    def begin(self, residents: Residents) -> None:
        super().begin(residents)
        self._generator = torch.Generator(residents.model.device).manual_seed(self.seed)

    def importance(self, step: int, residents: Residents) -> Tensor:
        birth = residents.live(residents.birth)
        return torch.rand(birth.shape, device=birth.device, generator=self._generator)


@dataclass
class Mass(Rule):
    """Heavy hitters: the sum of all attention so far (H2O, arXiv 2306.14048)."""

    statistics = True

    def begin(self, residents: Residents) -> None:
        super().begin(residents)
        self._mass = residents.per_slot()

    def place(self, step: int, residents: Residents) -> None:
        super().place(step, residents)
        residents.mark(self._mass, 0.0)

    def note(self, step: int, residents: Residents) -> None:
        residents.live(self._mass).add_(residents.live(residents.statistics.mass))

    def importance(self, step: int, residents: Residents) -> Tensor:
        return residents.live(self._mass)


@dataclass
class Paper(Rule):
    """The page of the oldest timestamp goes; the best half is stamped each step (RaaS).

    As published in arXiv 2502.11147, with exact products in place of Quest's bounds.
    """

    every: int = 16  # tokens of a page
    ratio: float = 0.5
    statistics = True

    def begin(self, residents: Residents) -> None:
        super().begin(residents)
        self._stamps = residents.track(residents.model.heads, residents.budget // self.every)

    def note(self, step: int, residents: Residents) -> None:
        stamps, logits = residents.live(self._stamps), residents.live(residents.statistics.logit)
        scores = logits.unflatten(-1, (-1, self.every)).amax(-1)
        current = (residents.live(residents.slot) // self.every)[..., None]
        scores.scatter_(-1, current, -torch.inf)  # it is not full
        best = scores.topk(max(1, int(stamps.shape[-1] * self.ratio)), -1).indices
        stamps.scatter_(-1, best, float(step))  # of a page that is still to come it is renewed
        stamps.scatter_(-1, current, float(step))

    def choose(self, step: int, residents: Residents) -> Tensor:
        births = residents.live(residents.birth).unflatten(-1, (-1, self.every)).amax(-1)
        oldest = (residents.live(self._stamps).double() + births * 1e-6).argmin(-1, keepdim=True)
        return oldest * self.every + torch.arange(self.every, device=oldest.device)
