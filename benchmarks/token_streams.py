"""One batch of streamed requests, and when each token of each came."""

import http.client
import json
import statistics
import threading
import time
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

POLL_S = 0.005


class OutOfTimeError(Exception):
    """The run's time is used up; what was stored stays."""


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
        body = {"input_ids": list(prompts), "sampling_params": params, "stream": True}
        arguments = (urlsplit(url).netloc, json.dumps(body))
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
        if time.monotonic() > deadline:
            raise OutOfTimeError
        if not self._thread.is_alive():
            self.join()
            raise RuntimeError(f"{awaited} must come before the requests end at {self.counts()}")
        time.sleep(POLL_S)

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

    def _read(self, address: str, body: str) -> None:
        connection = http.client.HTTPConnection(address)
        try:
            connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                self._failure = response.read().decode()
                return
            while line := response.readline():
                now = time.monotonic()
                if line.startswith(b"data: {"):
                    self._note(json.loads(line[len(b"data: ") :]), now)
        except (OSError, http.client.HTTPException) as error:
            self._failure = repr(error)
        finally:
            connection.close()

    def _note(self, message: dict[str, Any], now: float) -> None:
        if "error" in message:
            self._failure = str(message["error"])
            return
        row, info = message["index"], message["meta_info"]
        self.meta_infos[row] = info
        self.output_ids[row] += message["output_ids"]
        # The time first: a reader that sees the count must find it.
        self._seconds[row].append(now)
        self._tokens[row].append(info["completion_tokens"])
