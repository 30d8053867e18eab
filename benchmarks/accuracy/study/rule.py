"""What a rule is: which generated tokens are given up, and when."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from benchmarks.accuracy.study.residents import Residents


@dataclass
class Rule:
    """Gives up the tokens of the least importance.

    Attributes:
        every: Steps between two choices.
        floor: Share of the budget, newest tokens, that is not given up.
        statistics: Whether `Residents.statistics` are read.
    """

    every: int = 1
    floor: float = 0.5
    statistics: ClassVar[bool] = False
    victims: Tensor = field(init=False, repr=False)

    def begin(self, residents: Residents) -> None:
        """Makes what is tracked of tokens and heads."""
        if residents.budget % self.every:
            raise ValueError(
                f"the budget must be a multiple of every = {self.every}, got {residents.budget}"
            )
        self.victims = residents.track(residents.model.heads, self.every, dtype=torch.long)

    def place(self, step: int, residents: Residents) -> None:
        """Says which slots the step's tokens are written to."""
        slot = residents.live(residents.slot)
        if step < residents.budget:
            slot.fill_(step)
        else:
            slot.copy_(residents.live(self.victims)[..., step % self.every])
        residents.mark(residents.birth, step)

    def observe(self, step: int, residents: Residents) -> None:
        """Notes what the step said of the tokens; chooses, where it is time and slots are full."""
        self.note(step, residents)
        if (step + 1) % self.every == 0 and step + 1 >= residents.budget:
            residents.live(self.victims).copy_(self.choose(step, residents))

    def note(self, step: int, residents: Residents) -> None:
        """Updates what is tracked."""

    def choose(self, step: int, residents: Residents) -> Tensor:
        """Returns int64 [layers, rows, H, every], slots that are written over next."""
        birth = residents.live(residents.birth)
        is_new = step - birth < int(self.floor * residents.budget)
        kept = torch.where(is_new, torch.inf, self.importance(step, residents))
        return kept.topk(self.every, -1, largest=False).indices

    def importance(self, step: int, residents: Residents) -> Tensor:
        """Returns float32 [layers, rows, H, L]."""
        raise NotImplementedError
