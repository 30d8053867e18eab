"""One request as the page shows it."""

from array import array
from bisect import bisect_right
from typing import Any

import msgspec

from raas_sglang.trace import RequestTrace
from raas_sglang.view.lives import ALL, Lives
from raas_sglang.view.record import Change
from raas_sglang.view.uses import noted_uses

# A token whose heads no sample has shown yet.
UNKNOWN = "."


class ViewedRequest:
    """What is known of a request, at every sample so far.

    Attributes:
        key: The page's name of it.
        replica: Replica of the model that it runs on.
        told: Its lengths and names as they were told last, without its text.
        token_ids: Its text, prompt first.
        steps: Decode steps after which samples were taken; steps count by request.
        lives: Lives of its generated tokens.
        runs: Whether the newest sample of its replica has it.
        began, heard: Seconds since the epoch at which its first and its newest sample came.
        version: Grows with each change of anything.
    """

    def __init__(self, change: Change, replica: int, now: float) -> None:
        self.key, self.replica = change.key, replica
        self.token_ids = array("i")
        self.steps: list[int] = []
        self.lives = Lives()
        self.runs = True
        self.began = self.heard = now
        self.version = 0
        self.told = _told(change)

    @property
    def step(self) -> int:
        """Step after which the newest sample was taken."""
        return self.told.logical_len - self.told.prompt_len - 1

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.lives.nbytes + 4 * (len(self.token_ids) + len(self.steps))

    def take(self, change: Change, tp_rank: int, now: float) -> None:
        """Notes what a message says of it."""
        if change.text_from is not None:
            self.told = _told(change)
            self.runs = change.finished is None
            del self.token_ids[change.text_from :]
            self.token_ids.frombytes(change.token_ids)
            self.heard = now
            self._note_step()
        if change.table is not None:
            self.lives.take(tp_rank, change.table)

    def end(self, reason: str) -> None:
        """Notes that it has ended, though no message says so."""
        self.told = msgspec.structs.replace(self.told, finished=reason)
        self.runs = False

    def _note_step(self) -> None:
        while self.steps and self.steps[-1] >= self.step:
            self.steps.pop()
        if self.step >= 0:
            self.steps.append(self.step)

    def sampled(self, step: int | None) -> tuple[int, int | None, int | None]:
        """Steps after which samples were taken, for the slider.

        Args:
            step: Any step; None for the newest.

        Returns:
            The newest sampled step up to it (the first if there is none, -1 if there is none at
            all), the one before that, and the one after it.
        """
        if not self.steps:
            return -1, None, None
        last = len(self.steps) - 1
        place = last if step is None else max(0, bisect_right(self.steps, step) - 1)
        previous = self.steps[max(0, place - 1)]
        return self.steps[place], previous, self.steps[place + 1] if place < last else None

    def held(self, step: int) -> str:
        """A character for each generated token that was stored after a step: its level, or unknown.

        Args:
            step: One of ``steps``.
        """
        if not self.lives.heads:
            known = str(ALL) * (step + 1) if self.keeps_all else ""
        else:
            known = (self.lives.levels(step) + ord("0")).tobytes().decode()
        return known.ljust(step + 1, UNKNOWN)

    @property
    def keeps_all(self) -> bool:
        """Whether it gave up nothing; such a request has no token tables."""
        return self.told.logical_len == self.told.resident_len

    def summary(self) -> dict[str, Any]:
        """What the list of requests shows, and what the page needs to lay out the rest."""
        told = self.told
        return {
            "key": self.key,
            "rid": told.rid,
            "policy": told.policy,
            "budget": told.budget,
            "prompt": told.prompt_len,
            "logical": told.logical_len,
            "resident": told.resident_len,
            "evicted": told.logical_len - told.resident_len,
            "state": told.finished or ("running" if self.runs else "waiting"),
            "began": self.began,
            "heard": self.heard,
            "first_step": self.steps[0] if self.steps else -1,
            "step": self.steps[-1] if self.steps else -1,
            "heads": self.lives.heads,
            "notes_uses": noted_uses(told.policy) is not None,
            "back_at": self.lives.back_at,
        }


def _told(change: Change) -> RequestTrace:
    lens = change.prompt_len, change.logical_len, change.resident_len
    return RequestTrace(change.rid, change.policy, change.budget, *lens, b"", change.finished)
