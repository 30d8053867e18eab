"""Messages that have come and were not looked at yet: not more than memory and time allow."""

import threading
from collections import deque

from raas_sglang.trace import Received

# Samples beyond it are left out, except the newest of each rank, so that the page is not late.
_MOST_BYTES = 1 << 26


class Backlog:
    """A queue between the thread that receives and the one that looks at what has come.

    Args:
        most_bytes: Token tables and texts that may wait.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._waiting: deque[Received] = deque()
        self._changed = threading.Condition()
        self._bytes, self._most_bytes = 0, most_bytes

    def put(self, message: Received) -> None:
        """Adds a message, and leaves samples out that are too many; ends of requests stay."""
        with self._changed:
            self._waiting.append(message)
            self._bytes += _size(message)
            if self._bytes > self._most_bytes:
                self._waiting = deque(_newest(self._waiting))
                self._bytes = sum(map(_size, self._waiting))
            self._changed.notify()

    def get(self) -> Received:
        """Waits for a message and returns the oldest."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
            message = self._waiting.popleft()
            self._bytes -= _size(message)
            return message


def _newest(messages: deque[Received]) -> list[Received]:
    kept: list[Received] = []
    ranks: set[tuple[int, int]] = set()
    for message in reversed(messages):
        rank = message.batch.attn_dp_rank, message.batch.tp_rank
        if any(request.finished for request in message.batch.requests):
            kept.append(message)
        elif rank not in ranks:
            kept.append(message)
            ranks.add(rank)
    return kept[::-1]


def _size(message: Received) -> int:
    tables = sum(len(event.births) + len(event.weights) for event in message.batch.events)
    return tables + sum(len(request.token_ids) for request in message.batch.requests)
