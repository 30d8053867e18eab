"""The generated tokens that are kept: L slots of each layer, answer and KV head."""

import math

import torch
from torch import Tensor

from benchmarks.accuracy.study.attention import Prompts, Statistics
from benchmarks.accuracy.study.model import Model


class Residents:
    """Slots, and what is noted of the tokens in them.

    Answers that have ended make room: the first `rows` rows are alive, and `live` cuts a tensor to
    them. Tensors start with [layers, rows].

    Attributes:
        keys: [..., H, L, D].
        values: [..., H, L, D].
        norms: float32 [..., H, L], of the values.
        birth: float32 [..., H, L], the step that wrote the token, -1 in an empty slot.
        slot: int64 [..., H], where the last step's token is.
        queries: [..., H, G, D], turned, of the last step.
        statistics: Of attention in the last step; made when a rule wants it.
        start: int64 [rows], where each prompt begins.
        length: int64 [rows], its tokens.
    """

    def __init__(self, model: Model, prompts: Prompts, budget: int) -> None:
        self.model, self.prompts, self.budget = model, prompts, budget
        self.rows = self.all_rows = len(prompts.start)
        self._moved: list[Tensor] = []
        heads, group, size = model.heads, model.query_heads // model.heads, model.size
        self.keys = self.track(heads, budget, size, dtype=model.dtype)
        self.values = self.track(heads, budget, size, dtype=model.dtype)
        self.norms = self.track(heads, budget)
        self.birth = self.track(heads, budget, fill=-1.0)
        self._own_count = len(self._moved)
        layers = len(model.layers)
        shape = (layers, self.all_rows, heads)
        self.slot = torch.zeros(shape, dtype=torch.long, device=model.device)
        self.queries = torch.zeros(*shape, group, size, dtype=model.dtype, device=model.device)
        self.statistics: Statistics | None = None
        self.start, self.length = prompts.start.clone(), prompts.length.clone()

    def reset(self) -> None:
        """Empties all slots, brings every row back to life and forgets what a rule tracked."""
        self.rows = self.all_rows
        del self._moved[self._own_count :]
        self.birth.fill_(-1)
        self.start.copy_(self.prompts.start)
        self.length.copy_(self.prompts.length)
        if self.statistics:
            self.statistics.logit.fill_(-math.inf)

    def want_statistics(self) -> None:
        """Makes `statistics`."""
        if self.statistics is None:
            new = (torch.zeros_like(self.birth) for _ in range(4))
            self.statistics = Statistics(*new)
            self.statistics.logit.fill_(-math.inf)

    def track(self, *shape: int, fill: float = 0.0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns a tensor [layers, rows, *shape] that stays with the rows when they move."""
        size = (len(self.model.layers), self.all_rows, *shape)
        self._moved.append(torch.full(size, fill, dtype=dtype, device=self.model.device))
        return self._moved[-1]

    def per_slot(self, fill: float = 0.0) -> Tensor:
        """Returns a tracked tensor [layers, rows, H, L]."""
        return self.track(self.model.heads, self.budget, fill=fill)

    def live(self, x: Tensor) -> Tensor:
        """Returns the rows that are alive."""
        return x[:, : self.rows]

    def where(self) -> tuple[Tensor, Tensor]:
        """Returns start and length of the prompts of the rows that are alive."""
        return self.start[: self.rows], self.length[: self.rows]

    def mark(self, tracked: Tensor, value: float) -> None:
        """Sets a tracked [layers, rows, H, L] at the slots of the last step's tokens."""
        self.live(tracked).scatter_(-1, self.live(self.slot)[..., None], value)

    def keep(self, index: Tensor) -> None:
        """Moves the rows at ``index`` to the front; the others are dead."""
        count = len(index)
        for x in self._moved:
            for layer in x:  # a copy of all layers at once would double the memory
                layer[:count] = layer.index_select(0, index)
        for x in (self.start, self.length):
            x[:count] = x[index]
        self.rows = count
