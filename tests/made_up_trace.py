"""Messages of a trace stream that no server sent: requests whose heads give up tokens at random."""

import numpy as np

from raas_sglang.trace import RequestTrace, TokenTrace, TraceBatch

PROMPT = 5


class MadeUpRequest:
    """One request; its token ids are the positions in its text.

    Args:
        rid: Its name.
        budget: L; None keeps everything.
        layers: Y.
        heads: H of this rank.
        seed: Of what its heads give up.
        policy: Its name.
    """

    def __init__(self, rid, budget=16, layers=3, heads=2, seed=0, policy="raas"):
        self.rid, self.budget, self.policy = rid, budget, policy if budget else "dense"
        self.shape = layers, heads
        self.step = -1
        self.births = np.zeros((layers * heads, budget or 0), np.int32)
        self._random = np.random.default_rng(seed)

    def advance(self, steps):
        """Decodes; each head overwrites one of its older half, some tokens seldom."""
        for _ in range(steps):
            self.step += 1
            if self.budget is None:
                continue
            if self.step < self.budget:
                self.births[:, self.step] = self.step
                continue
            worth = self._random.random(self.births.shape) + 2 * (self.births % 11 == 0)
            worth[self.births > self.step - self.budget // 2] = np.inf
            self.births[np.arange(len(self.births)), worth.argmin(1)] = self.step
        return self

    def retract(self):
        """Retracted and prefilled again: it holds its newest tokens, in their order."""
        newest = np.arange(max(0, self.step + 1 - self.budget), self.step + 1)
        self.births[:, : len(newest)] = newest

    @property
    def held(self):
        """How many heads hold each token."""
        table = self.births[:, : self.step + 1]
        return np.bincount(table.ravel(), minlength=self.step + 1)

    def event(self):
        """Its token table, as one message has it."""
        table = np.ascontiguousarray(self.births[:, : self.step + 1]).reshape(*self.shape, -1)
        weights = np.where(table % 11 == 0, -1.0, -9.0).astype(np.float32)
        lens = PROMPT, PROMPT + self.step + 1, PROMPT + table.shape[2]
        arrays = table.astype("<i4").tobytes(), weights.tobytes()
        return TokenTrace(self.rid, self.policy, self.budget, *lens, table.shape, *arrays)

    def text(self, finished=None):
        """Its text, as one message has it."""
        logical = PROMPT + self.step + 1
        resident = logical if self.budget is None else PROMPT + min(self.step + 1, self.budget)
        ids = np.arange(logical, dtype="<i4").tobytes()
        lens = PROMPT, logical, resident
        return RequestTrace(self.rid, self.policy, self.budget, *lens, ids, finished)


def sampled(*requests, ts=0.0, replica=0, rank=0, server=7):
    """The message of one step."""
    events = [request.event() for request in requests if request.budget]
    texts = [request.text() for request in requests] if rank == 0 else []
    return TraceBatch(ts, events, replica, rank, texts, server)


def ended(request, reason="stop", ts=0.0, replica=0, server=7):
    """The message of an end."""
    return TraceBatch(ts, [], replica, 0, [request.text(reason)], server)
