"""Clients that ask a server for a catalogue of requests, and what comes of each."""

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks.harness.arms import Arm
from benchmarks.harness.streams import stream
from benchmarks.serving.catalogue import Entry

DISCONNECTED, ABORTED = 0.1, 0.1  # shares of the requests
STREAM_INTERVAL = 8  # tokens in one message

# Its number, what is asked, how it ends, and the share of its tokens to come before that.
Dealt = tuple[int, Entry, str, float]


@dataclass
class Outcome:
    """What came of one request.

    Attributes:
        entry: The request.
        ending: `finished`, `disconnected` or `aborted`.
        verdict: See `Entry.verdict`.
        tokens: Generated tokens that came.
        retractions: How often it was retracted for lack of memory.
        began: `time.monotonic` when it was sent.
        ended: The same when its last token came.
    """

    entry: Entry
    ending: str
    verdict: str
    tokens: int
    retractions: int
    began: float
    ended: float

    def tokens_between(self, begin: float, end: float) -> float:
        """Its tokens of a stretch of time, as if they had come at an even pace."""
        overlap = min(self.ended, end) - max(self.began, begin)
        return self.tokens * max(0.0, overlap) / (self.ended - self.began)


class Dealer:
    """Deals the catalogue in random order, again and again, until the time is up."""

    def __init__(self, catalogue: list[Entry], seed: int, deadline: float) -> None:
        self._catalogue, self._random, self._deadline = catalogue, random.Random(seed), deadline
        self._deck: list[Entry] = []
        self._lock, self._count = threading.Lock(), 0

    def deal(self) -> Dealt | None:
        """Returns the next request, None when the time is up."""
        with self._lock:
            if time.monotonic() > self._deadline:
                return None
            if not self._deck:
                self._deck = self._random.sample(self._catalogue, len(self._catalogue))
            self._count += 1
            weights = (1 - DISCONNECTED - ABORTED, DISCONNECTED, ABORTED)
            (ending,) = self._random.choices(("finished", "disconnected", "aborted"), weights)
            return self._count, self._deck.pop(), ending, self._random.random()


def deal_whole(entries: Iterator[tuple[int, Entry]], is_over: threading.Event) -> Dealt | None:
    """Deals one request after the other, each to be asked to its end, until it is over."""
    dealt = None if is_over.is_set() else next(entries, None)
    return dealt and (*dealt, "finished", 1.0)


def run_crowd(arm: Arm, deal: Callable[[], Dealt | None], clients: int) -> list[Outcome]:
    """Lets clients ask until they are dealt nothing, and waits for every answer."""

    def client() -> list[Outcome]:
        outcomes = []
        while (dealt := deal()) is not None:
            outcomes.append(ask(arm, *dealt))
        return outcomes

    with ThreadPoolExecutor(clients) as pool:
        futures = [pool.submit(client) for _ in range(clients)]
        return [outcome for future in futures for outcome in future.result()]


def ask(arm: Arm, number: int, entry: Entry, ending: str, share: float) -> Outcome:
    """Sends one request, and disconnects or aborts it after a share of its tokens."""
    enough = share * entry.problem.generated_tokens
    # SGLang aborts by prefix, so no id may be the beginning of another.
    body = entry.body(rid=f"soak-{number}-")
    body["sampling_params"]["stream_interval"] = STREAM_INTERVAL
    began, last = time.monotonic(), {}
    if ending == "finished":
        last = arm.post("/generate", **body).json()
    else:
        for last in stream(arm.server.url + "/generate", body):
            if last["meta_info"]["completion_tokens"] < enough:
                continue
            if ending == "disconnected":
                break
            if last["meta_info"]["finish_reason"] is None:
                arm.post("/abort_request", rid=body["rid"])
                enough = math.inf
    # A disconnected client has not asked how it ended; an aborted request may have come to its end.
    info = last.get("meta_info", {})
    reason = info.get("finish_reason") or {"type": "abort"}
    return Outcome(
        entry,
        ending,
        entry.verdict(last.get("text", ""), is_whole=reason["type"] != "abort"),
        info.get("completion_tokens", 0),
        info.get("num_retractions", 0),
        began,
        time.monotonic(),
    )


def throughput(outcomes: list[Outcome], begin: float, end: float) -> float:
    """Tokens per second in a stretch of time."""
    return sum(o.tokens_between(begin, end) for o in outcomes) / (end - begin)
