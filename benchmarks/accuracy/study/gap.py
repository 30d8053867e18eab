"""Timestamps, each set against how often its token comes back."""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.accuracy.study.residents import Residents
from benchmarks.accuracy.study.rule import Rule

OLDER_FIRST = 1e-9  # of tokens whose gaps are alike


@dataclass
class Gap(Rule):
    """The longest since its last use, against its own longest gap between uses, goes."""

    threshold: float = 1e-3  # probability from which a token counts as used
    statistics = True

    def begin(self, residents: Residents) -> None:
        super().begin(residents)
        self._last, self._longest = residents.per_slot(), residents.per_slot()

    def place(self, step: int, residents: Residents) -> None:
        super().place(step, residents)
        residents.mark(self._last, step)
        residents.mark(self._longest, 0.0)

    def note(self, step: int, residents: Residents) -> None:
        last, longest = residents.live(self._last), residents.live(self._longest)
        is_used = residents.live(residents.statistics.largest) > self.threshold
        is_used &= residents.live(residents.birth) >= 0
        longest.copy_(torch.where(is_used, torch.maximum(longest, step - last), longest))
        last.masked_fill_(is_used, step)

    def importance(self, step: int, residents: Residents) -> Tensor:
        last, longest = residents.live(self._last), residents.live(self._longest)
        gaps = (last - step).double() / (longest + 1)
        return gaps + OLDER_FIRST * residents.live(residents.birth)
