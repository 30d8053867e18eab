"""All requests that the page knows, and the memory that they may take."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from raas_sglang.trace import RequestTrace
from raas_sglang.trace.message import TOKEN_DTYPE
from raas_sglang.view.record import Sample
from raas_sglang.view.request import ViewedRequest
from raas_sglang.view.tracker import Known

# Memory of the requests that do not run any more; beyond it, the oldest are forgotten.
_MOST_BYTES = 1 << 30
LOST = "lost"


class Book:
    """The requests by key. Written by one thread, read by others: each call is one step to them."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._requests: dict[int, ViewedRequest] = {}
        self._lock = threading.Lock()
        self._version = 0
        self._most_bytes = most_bytes
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
            told = {change.key for change in sample.changes}
            for change in sample.changes:
                request = self._requests.get(change.key)
                if request is None:
                    if change.key < self._next_key:
                        continue  # forgotten
                    request = ViewedRequest(change, sample.replica, now)
                    self._requests[change.key] = request
                    self._next_key = change.key + 1
                request.take(change, sample.tp_rank, now)
                request.version = self._version
            for request in self._requests.values():
                if request.replica == sample.replica and request.told.finished is None:
                    self._note_presence(request, sample, request.key in told)
            self._forget()

    def _note_presence(self, request: ViewedRequest, sample: Sample, is_told: bool) -> None:
        if is_told or not (sample.is_restart or (sample.is_step and request.runs)):
            return
        if sample.is_restart:
            request.end(LOST)
        request.runs = False
        request.version = self._version

    def _forget(self) -> None:
        ended = [request for request in self._requests.values() if not request.runs]
        size = sum(request.nbytes for request in ended)
        while ended and size > self._most_bytes:
            oldest = ended.pop(0)
            size -= oldest.nbytes
            del self._requests[oldest.key]

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

    def known(self) -> tuple[int, dict[tuple[int, str], Known]]:
        """The next free key, and what a `Tracker` must know to go on with requests that run."""
        with self._lock:
            running = (r for r in self._requests.values() if r.told.finished is None)
            return self._next_key, {(r.replica, r.told.rid): _known(r) for r in running}


def _known(request: ViewedRequest) -> Known:
    told = request.told
    lens = told.prompt_len, told.logical_len, told.resident_len
    assert request.token_ids.itemsize == TOKEN_DTYPE.itemsize
    text = request.token_ids.tobytes()
    return Known(request.key, RequestTrace(told.rid, told.policy, told.budget, *lens, text))
