"""All requests that the page knows, and the memory that they may take."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from raas_sglang.trace import RequestTrace
from raas_sglang.trace.message import TOKEN_DTYPE
from raas_sglang.view.record import Sample
from raas_sglang.view.request import ViewedRequest
from raas_sglang.view.tracker import MOST_KNOWN, Known

# Memory and number of the requests that have ended; beyond them, the first that did are forgotten.
_MOST_BYTES, _MOST_ENDED = 1 << 30, 10_000
LOST = "lost"


class Book:
    """The requests by key. Written by one thread, read by others: each call is one step to them."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._requests: dict[int, ViewedRequest] = {}
        self._open: dict[int, ViewedRequest] = {}
        self._ended: dict[int, int] = {}  # bytes, in the order of their ends
        self._servers: dict[int, int] = {}  # by replica
        self._lock = threading.Lock()
        self._version = 0
        self._bytes, self._most_bytes = 0, most_bytes
        self._next_key = 0

    def take(self, sample: Sample, now: float | None = None) -> None:
        """Notes what a message said.

        Args:
            sample: The message.
            now: Seconds since the epoch at which it came; when it was sent if that is not known.
        """
        now = sample.ts if now is None else now
        with self._lock:
            self._version += 1
            if sample.tp_rank == 0:
                self._servers[sample.replica] = sample.server
            told = {change.key for change in sample.changes}
            for change in sample.changes:
                request = self._requests.get(change.key)
                if request is None:
                    if change.key < self._next_key:
                        continue  # forgotten
                    request = ViewedRequest(change, sample.replica, now)
                    self._requests[change.key] = self._open[change.key] = request
                    self._next_key = change.key + 1
                request.take(change, sample.tp_rank, now)
                request.version = self._version
            for request in list(self._open.values()):
                if request.replica == sample.replica and request.told.finished is None:
                    self._note_presence(request, sample, request.key in told)
                if request.told.finished is not None:
                    self._end(request)
            if len(self._open) > MOST_KNOWN:
                self._lose_one()
            self._forget()

    def _note_presence(self, request: ViewedRequest, sample: Sample, is_told: bool) -> None:
        if is_told or not (sample.is_restart or (sample.is_step and request.runs)):
            return
        if sample.is_restart:
            request.end(LOST)
        request.runs = False
        request.version = self._version

    def _lose_one(self) -> None:
        """Ends the oldest request that does not run: more are not followed, so no end is told."""
        waiting = next((r for r in self._open.values() if not r.runs), None)
        if waiting is not None:
            waiting.end(LOST)
            waiting.version = self._version
            self._end(waiting)

    def _end(self, request: ViewedRequest) -> None:
        del self._open[request.key]
        self._ended[request.key] = request.nbytes
        self._bytes += request.nbytes

    def _forget(self) -> None:
        while self._bytes > self._most_bytes or len(self._ended) > _MOST_ENDED:
            oldest = next(iter(self._ended))
            self._bytes -= self._ended.pop(oldest)
            del self._requests[oldest]

    @contextmanager
    def request(self, key: int) -> Iterator[ViewedRequest]:
        """A request that does not change while the block runs.

        Raises:
            KeyError: there is none of this name.
        """
        with self._lock:
            yield self._requests[key]

    def changed(self, version: int) -> tuple[int, list[dict[str, Any]]]:
        """The present version, and what the list shows of whatever changed since another one."""
        with self._lock:
            found = [r.summary() for r in self._requests.values() if r.version > version]
            return self._version, found

    def keys(self) -> list[int]:
        """Names of all requests."""
        with self._lock:
            return list(self._requests)

    def known(self) -> tuple[int, dict[tuple[int, str], Known], dict[int, int]]:
        """What a `Tracker` must be told to go on."""
        with self._lock:
            known = {(r.replica, r.told.rid): _known(r) for r in self._open.values()}
            return self._next_key, known, dict(self._servers)


def _known(request: ViewedRequest) -> Known:
    told = request.told
    lens = told.prompt_len, told.logical_len, told.resident_len
    assert request.token_ids.itemsize == TOKEN_DTYPE.itemsize
    text = request.token_ids.tobytes()
    return Known(request.key, RequestTrace(told.rid, told.policy, told.budget, *lens, text))
