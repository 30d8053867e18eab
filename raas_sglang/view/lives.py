"""How long each layer and KV head held each generated token of one request."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raas_sglang.view.record import TableChange

_HELD = np.iinfo(np.int32).max
# Levels of the share of heads that hold a token: 0 none, `ALL` all, `QUARTER` a quarter or more.
ALL, QUARTER = 8, 2
_PAIR = np.dtype("<i4")
# Tokens whose picture is made at a time, so that it takes little memory.
_BLOCK = 1024


class Life(NamedTuple):
    """What became of one generated token.

    Attributes:
        ends: [Y, H] int32. Step of the first sample in which each KV head did not hold it; -1
            where it still does.
        last_use: Step of the last sample in which a quarter of the heads that held it used it; -1
            if there is none, or the policy notes no uses.
    """

    ends: NDArray[np.int32]
    last_use: int


class Lives:
    """Lives of all generated tokens of one request, in memory that grows with them.

    Attributes:
        tokens: Generated tokens that were stored at the newest sample.
        back_at: Steps at which tokens were computed again after a retraction; what was given up
            before, and is held again, counts as held all along.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.back_at: list[int] = []
        self._ends: dict[int, NDArray[np.int32]] = {}  # by rank: [heads, room]
        self._layers: dict[int, int] = {}
        self._last_uses = np.full(256, -1, np.int32)

    @property
    def heads(self) -> int:
        """KV heads of all layers and ranks that were heard of."""
        return sum(len(ends) for ends in self._ends.values())

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self._last_uses.nbytes + sum(ends.nbytes for ends in self._ends.values())

    def take(self, tp_rank: int, change: TableChange) -> None:
        """Notes what the heads of one rank did."""
        tokens = change.step + 1
        self._last_uses = _grown(self._last_uses, tokens, -1)
        known = self._ends.get(tp_rank)
        if known is None:
            known = np.full((change.layers * change.heads, 256), _HELD, np.int32)
        ends = self._ends[tp_rank] = _grown(known, tokens, _HELD)
        self._layers[tp_rank] = change.layers
        ends[:, tokens:] = _HELD  # a retracted request may have lost the steps in flight
        back = _pairs(change.back)
        if back.shape[1] and change.step not in self.back_at:
            self.back_at.append(change.step)
        ends[back[0], back[1]] = _HELD
        heads, gone = _pairs(change.gone)
        inside = gone < tokens
        heads, gone = heads[inside], gone[inside]
        ends[heads, gone] = np.minimum(ends[heads, gone], change.step)
        used = np.frombuffer(change.used, _PAIR)
        self._last_uses[used] = change.step
        self.tokens = tokens if tp_rank == 0 else max(self.tokens, tokens)

    def levels(self, step: int) -> NDArray[np.uint8]:
        """Levels of the tokens that were stored after a step, [step + 1]."""
        stored = min(step + 1, self.tokens)
        held = np.zeros(stored, np.int32)
        for ends in self._ends.values():
            held += (ends[:, :stored] > step).sum(0, dtype=np.int32)
        return self._level(held)

    def life(self, token: int) -> Life:
        """What became of a token, layer by layer and head by head."""
        tables = [
            self._ends[rank][:, token].reshape(self._layers[rank], -1)
            for rank in sorted(self._ends)
        ]
        ends = np.concatenate(tables, axis=1)
        return Life(np.where(ends == _HELD, -1, ends), int(self._last_uses[token]))

    def picture(self, rows: int, columns: int, budget: int) -> NDArray[np.uint8]:
        """Draws the lives: tokens from above to below, steps from left to right.

        Where several tokens share a row, the one that lasts is drawn.

        Args:
            rows: Height.
            columns: Width.
            budget: L, in tokens.

        Returns:
            [rows, columns]: 0 where nothing is held; else 2 × level, 1 more until the last use, and
            32 more where a quarter of the heads or more hold a token that L newer ones have
            followed: a milestone.
        """
        image = np.zeros((rows, columns), np.uint8)
        # The step that each column ends with.
        steps = np.maximum(1, -(-np.arange(1, columns + 1) * self.tokens // columns)) - 1
        row_of = np.arange(self.tokens) * rows // max(rows, self.tokens)
        for start in range(0, self.tokens, _BLOCK):
            drawn = self._drawn(start, min(start + _BLOCK, self.tokens), steps, budget)
            rows_here, firsts = np.unique(row_of[start : start + _BLOCK], return_index=True)
            image[rows_here] = np.maximum(image[rows_here], np.maximum.reduceat(drawn, firsts))
        return image

    def _drawn(
        self, start: int, stop: int, steps: NDArray[np.int64], budget: int
    ) -> NDArray[np.uint8]:
        """The rows of some tokens, [stop - start, columns]."""
        tokens, columns = np.arange(start, stop), len(steps)
        lost = np.zeros(len(tokens) * (columns + 1), np.int64)
        first = (tokens - start) * (columns + 1)
        for ends in self._ends.values():
            # The first column in which a head does not hold it any more.
            lost += np.bincount(
                (first + np.searchsorted(steps, ends[:, start:stop])).ravel(), minlength=len(lost)
            )
        gone = lost.reshape(len(tokens), -1)[:, :columns].cumsum(1, dtype=np.int32)
        level = self._level(np.arange(self.heads, -1, -1))[gone]
        ages = steps - tokens[:, None]
        level[ages < 0] = 0
        drawn: NDArray[np.uint8] = 2 * level
        drawn += (steps <= self._last_uses[start:stop, None]) & (level > 0)
        drawn[(ages >= budget) & (level >= QUARTER)] += 32
        return drawn

    def _level(self, held: NDArray[Any]) -> NDArray[np.uint8]:
        level: NDArray[np.uint8] = np.maximum(ALL * held // max(1, self.heads), held > 0).astype(
            np.uint8
        )
        return level


def _pairs(data: bytes) -> NDArray[np.int32]:
    return np.frombuffer(data, _PAIR).reshape(2, -1)


def _grown(table: NDArray[np.int32], tokens: int, value: int) -> NDArray[np.int32]:
    """The table with room for so many tokens in its last dimension."""
    room = table.shape[-1]
    if tokens <= room:
        return table
    larger = np.full((*table.shape[:-1], max(tokens, 2 * room)), value, np.int32)
    larger[..., :room] = table
    return larger
