"""A server with a full queue, and how fast it generates."""

import statistics
import time
from dataclasses import dataclass

from benchmarks.harness.arms import Arm
from benchmarks.harness.deadline import OutOfTimeError, poll
from benchmarks.harness.decode_log import DecodeBatch, retractions
from benchmarks.harness.queue import RequestQueue, Served
from benchmarks.serving.steady_state import Work
from raas_sglang.cpu import has_driver

PARTS = 5
LEAST_LINES = 2 * PARTS
POLL_S = 0.1


@dataclass(frozen=True)
class Throughput:
    """What a window of decode steps came to.

    Attributes:
        rate: Tokens generated per second, prefills and whatever else the server did included.
        parts: The same of equal parts of the window.
        seconds: Length of the window.
        steps: Decode steps in it.
        running: Requests in a decode step, mean.
        running_span: The fewest and the most.
        waiting: Requests that waited, at the least.
        pool_tokens: Slots in use, mean.
        retractions: Requests that the server gave up for lack of memory, to begin again later.
        finished: Requests that came to their end.
    """

    rate: float
    parts: list[float]
    seconds: float
    steps: int
    running: float
    running_span: tuple[int, int]
    waiting: int
    pool_tokens: float
    retractions: int
    finished: int


class QueueRun:
    """One queue on one arm, from its start to its end.

    Args:
        arm: A started server, running nothing, that logs a decode batch every ``log_steps``.
        work: What every request is.
        queue: The requests; nothing is sent yet.
        log_steps: `--decode-log-interval` of the arm.
        interval: Tokens in one message of a stream.
        deadline: `time.monotonic` at which to give up.
    """

    def __init__(
        self,
        arm: Arm,
        work: Work,
        queue: RequestQueue,
        log_steps: int,
        interval: int,
        deadline: float,
    ) -> None:
        self.arm, self.work, self.queue, self.deadline = arm, work, queue, deadline
        self._log_steps, self._interval = log_steps, interval

    def wait_for_token(self, place: int) -> None:
        """Waits until the request that was sent at this place has a token; see `_poll`."""
        while len(self.queue.served) <= place or not self.queue.served[place].tokens:
            self._poll()

    def wait_steps(self, steps: int) -> None:
        """Waits for so many decode steps from now; see `_poll`."""
        mark = self.arm.log_size()
        while self._steps(mark) < steps:
            self._poll()

    def grow_over(self, count: int, steps: int) -> None:
        """Sends so many requests, evenly spread over so many decode steps; see `_poll`."""
        mark, sent = self.arm.log_size(), 0
        while sent < count:
            due = min(count, 1 + count * self._steps(mark) // steps)
            self.queue.grow(due - sent)
            sent = due
            self._poll()

    def window(self, steps: int, is_full: bool) -> Throughput:
        """Measures a window of so many decode steps, or of those that the time allows.

        Args:
            steps: Decode steps, at least.
            is_full: Whether requests must wait all the time.

        Raises:
            OutOfTimeError: the time does not allow a window worth the name.
            RuntimeError: the server did not do what it is said to do.
        """
        mark, before, began = self.arm.log_size(), self._ended(), time.monotonic()
        try:
            while self._steps(mark) < steps:
                self._poll()
        except OutOfTimeError:
            if self._steps(mark) < LEAST_LINES * self._log_steps:
                raise
        ended, lines = time.monotonic(), self.arm.decode_batches(mark)
        retracted = retractions(self.arm.server.log()[mark:])
        finished = self._ended() - before
        self._wait_for_messages()
        self._check(lines, is_full)
        edges = [began + (ended - began) * part / PARTS for part in range(PARTS + 1)]
        tokens = [self.queue.generated(edge) for edge in edges]
        rates = [
            (tokens[part + 1] - tokens[part]) / (edges[part + 1] - edges[part])
            for part in range(PARTS)
        ]
        running = [line.running for line in lines]
        return Throughput(
            rate=(tokens[-1] - tokens[0]) / (ended - began),
            parts=rates,
            seconds=ended - began,
            steps=len(lines) * self._log_steps,
            running=statistics.fmean(running),
            running_span=(min(running), max(running)),
            waiting=min(line.queued for line in lines),
            pool_tokens=statistics.fmean(line.pool_tokens for line in lines),
            retractions=retracted,
            finished=finished,
        )

    def end(self) -> None:
        """Ends all requests."""
        self.queue.close()
        while self.queue.is_busy():
            self.arm.post("/abort_request", abort_all=True)
            time.sleep(5 * POLL_S)
        self.queue.stop()

    def _steps(self, mark: int) -> int:
        return len(self.arm.decode_batches(mark)) * self._log_steps

    def _ended(self) -> int:
        return sum(served.has_ended for served in list(self.queue.served))

    def _wait_for_messages(self) -> None:
        """Waits until what was generated so far has been sent; a message bears some tokens."""
        mark = self.arm.log_size()
        while self._steps(mark) < self._interval + self._log_steps:
            self.queue.check()
            time.sleep(POLL_S)

    def _poll(self) -> None:
        """Sleeps a little.

        Raises:
            OutOfTimeError: the deadline has passed.
            RuntimeError: a request failed.
        """
        self.queue.check()
        poll(POLL_S, self.deadline)

    def _check(self, lines: list[DecodeBatch], is_full: bool) -> None:
        """Makes sure that the window timed what it is said to have timed.

        Raises:
            RuntimeError: it did not.
        """
        for line in lines:
            if line.is_graph is not has_driver() or (is_full and not line.queued):
                raise RuntimeError(
                    f"arm {self.arm.name} must decode as a CUDA graph where there is a GPU"
                    f"{', with requests waiting' if is_full else ''}, got {line}"
                )
        for served in list(self.queue.served):
            if served.tokens:
                self._check_report(served)

    def _check_report(self, served: Served) -> None:
        info = served.info
        self.arm.check_answer(info)
        if self.work.budget is None:
            return
        most = len(served.request.input_ids) + self.work.budget
        must_evict = served.tokens[-1] > self.work.budget + self._interval
        if info["resident_tokens"] > most or (must_evict and not info["evicted_tokens"]):
            raise RuntimeError(
                f"a request of arm {self.arm.name} must hold at most {most} tokens and give up "
                f"what it generates beyond, got {info}"
            )
