"""A queue of streamed requests that never runs dry, and when each request's tokens came."""

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

import aiohttp
import numpy as np

from benchmarks.harness.streams import message_of

Result = TypeVar("Result")


class Request(NamedTuple):
    """What is sent: token ids, and how many tokens to generate whatever they are."""

    input_ids: list[int]
    max_new_tokens: int


class Served:
    """One request as its client saw it; written by the queue's thread, read by others.

    Attributes:
        request: What was sent.
        info: `meta_info` of its last message.
        sent: `time.monotonic` when it was sent.
        seconds: When each message came.
        tokens: Tokens generated up to each message.
        has_ended: Whether its stream has ended.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.info: dict[str, Any] = {}
        self.sent = time.monotonic()
        self.seconds: list[float] = []
        self.tokens: list[int] = []
        self.has_ended = False

    def note(self, info: dict[str, Any]) -> None:
        """Notes a message."""
        self.info = info
        # The time first: a reader that sees the count must find it.
        self.seconds.append(time.monotonic())
        self.tokens.append(info["completion_tokens"])

    def generated(self, when: float) -> float:
        """Tokens generated up to a moment, evenly between two messages; 0 before the first."""
        count = len(self.tokens)
        if not count:
            return 0.0
        return float(np.interp(when, self.seconds[:count], self.tokens[:count], left=0.0))


class RequestQueue:
    """Keeps a number of requests at a server: when one ends the next is sent.

    Args:
        url: The server's.
        requests: What is sent, in this order, without end.
        params: Sampling parameters of all requests.
    """

    def __init__(self, url: str, requests: Iterator[Request], params: dict[str, Any]) -> None:
        self.served: list[Served] = []
        self._url = url + "/generate"
        self._requests = requests
        self._params = params
        self._is_closed = False
        self._work: list[Future[None]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._session = self._submit(self._open()).result()

    def grow(self, count: int) -> None:
        """Sends so many more requests at once, and one whenever one of them ends."""
        self._work += [self._submit(self._serve_on()) for _ in range(count)]

    def check(self) -> None:
        """Makes sure that all is well.

        Raises:
            RuntimeError: a request failed.
        """
        for work in self._work:
            error = work.exception() if work.done() else None
            if error:
                raise RuntimeError(f"a request of the queue failed: {error!r}") from error

    def generated(self, when: float) -> float:
        """Tokens that all requests together had generated up to a moment."""
        return sum(served.generated(when) for served in list(self.served))

    def close(self) -> None:
        """Sends no more; what is at the server stays until the server ends it."""
        self._is_closed = True

    def is_busy(self) -> bool:
        """Whether requests are at the server, or may yet be sent."""
        return not all(work.done() for work in self._work)

    def stop(self) -> None:
        """Drops all connections."""
        self._is_closed = True
        self._submit(self._session.close()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _submit(self, coroutine: Coroutine[Any, Any, Result]) -> "Future[Result]":
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _open(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=0)
        return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))

    async def _serve_on(self) -> None:
        while not self._is_closed:
            await self._serve(next(self._requests))

    async def _serve(self, request: Request) -> None:
        params = {**self._params, "max_new_tokens": request.max_new_tokens}
        body = {"input_ids": request.input_ids, "sampling_params": params, "stream": True}
        served = Served(request)
        self.served.append(served)
        async with self._session.post(self._url, json=body) as response:
            if response.status != 200:
                raise RuntimeError(await response.text())
            async for line in response.content:
                if message := message_of(line):
                    served.note(message["meta_info"])
        served.has_ended = True
