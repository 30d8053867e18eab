"""Streamed answers: their messages, and of one batch when each token of each request came."""

import http.client
import json
import statistics
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from benchmarks.harness.deadline import poll

POLL_S = 0.005
_JSON = {"Content-Type": "application/json"}


def message_of(line: bytes) -> dict[str, Any] | None:
    """Returns the object that a line of a streamed answer bears; None if it bears none.

    Raises:
        RuntimeError: it says that the request failed.
    """
    text = line.removeprefix(b"data: ")
    if not text.startswith(b"{"):
        return None
    message: dict[str, Any] = json.loads(text)
    if "error" in message:
        raise RuntimeError(f"a streamed request failed: {message['error']}")
    return message


def stream(url: str, body: dict[str, Any], timeout_s: float | None = 600) -> Iterator[dict]:
    """Sends a request and yields the messages of its answer as they come.

    Who leaves early closes the connection, and the server aborts the request.

    Args:
        url: With its route.
        body: What is sent, without ``stream``.
        timeout_s: Longest wait for a message.

    Raises:
        RuntimeError: the request was refused, or failed.
    """
    place = urlsplit(url)
    with closing(http.client.HTTPConnection(place.netloc, timeout=timeout_s)) as connection:
        connection.request("POST", place.path, json.dumps({**body, "stream": True}), _JSON)
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{url} must answer, got {response.read().decode()}")
        yield from filter(None, map(message_of, response))


class Window(NamedTuple):
    """A stretch of decode steps, seen from outside.

    Attributes:
        milliseconds: Between two tokens of a request; median over the requests.
        generated: Tokens that a request had generated when its steps ran; mean over steps and
            requests. A step that yields token n attends to the prompt and n - 1 generated tokens,
            as far as they are resident.
    """

    milliseconds: float
    generated: float


class TokenStreams:
    """Sends one batch to `/generate` and notes the arrival of every message.

    Args:
        url: The server's.
        prompts: Token ids, one list for each request.
        params: Sampling parameters of all requests; ``stream_interval`` says how many tokens come
            in one message.
    """

    def __init__(self, url: str, prompts: Sequence[Sequence[int]], params: dict[str, Any]) -> None:
        self.meta_infos: list[dict[str, Any]] = [{} for _ in prompts]
        self.output_ids: list[list[int]] = [[] for _ in prompts]
        self._tokens: list[list[int]] = [[] for _ in prompts]
        self._seconds: list[list[float]] = [[] for _ in prompts]
        self._failure: str | None = None
        body = {"input_ids": list(prompts), "sampling_params": params}
        arguments = (url + "/generate", body)
        self._thread = threading.Thread(target=self._read, args=arguments, daemon=True)
        self._thread.start()

    def counts(self) -> list[int]:
        """Tokens that each request has sent."""
        return [tokens[-1] if tokens else 0 for tokens in self._tokens]

    def wait(self, tokens: int, deadline: float) -> None:
        """Waits until every request has sent so many tokens; see `_poll` for the errors."""
        while min(self.counts()) < tokens:
            self._poll(f"{tokens} tokens", deadline)

    def wait_window(self, first: Sequence[int], length: int, deadline: float) -> Window:
        """Waits for a window and returns it; see `_poll` for the errors.

        Args:
            first: For each request, the window begins with its message at this token or after.
            length: Tokens of the window, a multiple of the stream interval.
            deadline: `time.monotonic` at which to give up.
        """
        while (window := self._window(first, length)) is None:
            self._poll(f"a window of {length} tokens", deadline)
        return window

    def join(self) -> None:
        """Waits until every request has ended, and says if one of them failed.

        Raises:
            RuntimeError: a request failed.
        """
        self._thread.join()
        if self._failure:
            raise RuntimeError(f"a streamed request failed: {self._failure}")

    def _poll(self, awaited: str, deadline: float) -> None:
        """Sleeps a little.

        Raises:
            OutOfTimeError: the deadline has passed.
            RuntimeError: the requests have ended, so what is awaited will not come.
        """
        if not self._thread.is_alive():
            self.join()
            raise RuntimeError(f"{awaited} must come before the requests end at {self.counts()}")
        poll(POLL_S, deadline)

    def _window(self, first: Sequence[int], length: int) -> Window | None:
        spans, middles = [], []
        for row, begin in enumerate(first):
            tokens, seconds = self._tokens[row], self._seconds[row]
            start = bisect_left(tokens, begin)
            end = bisect_left(tokens, tokens[start] + length) if start < len(tokens) else start
            if end == len(tokens):
                return None
            spans.append((seconds[end] - seconds[start]) / (tokens[end] - tokens[start]))
            # Its steps yield the tokens after the first message up to the last one.
            middles.append((tokens[start] + tokens[end] - 1) / 2)
        return Window(1000 * statistics.median(spans), statistics.fmean(middles))

    def _read(self, url: str, body: dict[str, Any]) -> None:
        try:
            for message in stream(url, body, timeout_s=None):
                self._note(message, time.monotonic())
        except (OSError, http.client.HTTPException, RuntimeError) as error:
            self._failure = repr(error)

    def _note(self, message: dict[str, Any], now: float) -> None:
        row, info = message["index"], message["meta_info"]
        self.meta_infos[row] = info
        self.output_ids[row] += message["output_ids"]
        # The time first: a reader that sees the count must find it.
        self._seconds[row].append(now)
        self._tokens[row].append(info["completion_tokens"])
