"""A window of a full queue counts what the server did in it, and is refused if it did otherwise."""

import time

import pytest

from benchmarks.harness.arms import Arm
from benchmarks.harness.deadline import OutOfTimeError
from benchmarks.harness.decode_log import decode_batches
from benchmarks.harness.queue import Request, Served
from benchmarks.serving import queue_run
from benchmarks.serving.queue_run import LEAST_LINES, QueueRun
from benchmarks.serving.steady_state import Work

LOG_STEPS, RUNNING = 20, 3
RETRACTED = "KV cache pool is full. Retract requests. #retracted_reqs: 2, #new_tokens_gained: 9\n"


class Log:
    """Stands for the server: a decode batch comes whenever the queue is looked at."""

    def __init__(self, queued=5, lines=10_000):
        self.text = ""
        self.queued, self.left = queued, lines

    def log(self):
        return self.text

    def decode(self):
        if self.left:
            self.left -= 1
            self.text += (
                f"Decode batch, #running-req: {RUNNING}, #token: 900, token usage: 0.90, "
                f"cpu graph: False, gen throughput (token/s): 60.00, #queue-req: {self.queued}\n"
            )


class FakeArm:
    """An arm without the plugin whose server is a `Log`."""

    name, has_plugin, is_evicting = "default", False, False
    check_answer = Arm.check_answer

    def __init__(self, server):
        self.server = server

    def log_size(self):
        return len(self.server.text)

    def decode_batches(self, mark):
        return decode_batches(self.server.text[mark:])


class FakeQueue:
    """Requests of which each has had one token and its end."""

    def __init__(self, server, info):
        self.server = server
        self.grown = []
        self.served = [Served(Request([1], 64)) for _ in range(RUNNING)]
        for served in self.served:
            served.note({"completion_tokens": 1, **info})

    def check(self):
        self.server.decode()

    def grow(self, count):
        self.grown.append(count)

    def generated(self, when):
        return 100.0 * when


@pytest.fixture
def run_of(monkeypatch):
    monkeypatch.setattr(queue_run, "POLL_S", 0.0)

    def make(server, deadline=None, **info):
        deadline = time.monotonic() + 60 if deadline is None else deadline
        work = Work(prompt=1, output=64, budget=None)
        queue = FakeQueue(server, info)
        return QueueRun(FakeArm(server), work, queue, LOG_STEPS, 64, deadline)

    return make


def test_a_window_holds_what_the_server_logged_in_it(run_of):
    server = Log()
    server.text = RETRACTED
    server.decode()
    run = run_of(server)
    server.text += RETRACTED  # before the window
    log = server.log
    server.log = lambda: log() + RETRACTED
    seen = run.window(300, is_full=True)
    assert seen.steps == 300
    assert (seen.running, seen.running_span, seen.waiting) == (3.0, (3, 3), 5)
    assert (seen.pool_tokens, seen.retractions, seen.finished) == (900.0, 2, 0)
    assert seen.rate == pytest.approx(100.0)
    assert seen.parts == pytest.approx([100.0] * 5)


def test_a_full_queue_that_runs_dry_is_refused(run_of):
    assert run_of(Log(queued=0)).window(300, is_full=False).waiting == 0
    with pytest.raises(RuntimeError, match="with requests waiting"):
        run_of(Log(queued=0)).window(300, is_full=True)


def test_an_answer_of_the_plugin_is_refused_where_there_must_be_none(run_of):
    with pytest.raises(RuntimeError, match="arm default must not answer"):
        run_of(Log(), kv_policy="raas").window(300, is_full=True)


def test_a_window_that_the_time_cuts_is_kept_if_it_is_long_enough(run_of, monkeypatch):
    run = run_of(Log(lines=LEAST_LINES), deadline=time.monotonic() + 0.2)
    monkeypatch.setattr(run, "_wait_for_messages", lambda: None)
    assert run.window(1000, is_full=True).steps == LEAST_LINES * LOG_STEPS


def test_a_window_that_the_time_cuts_too_short_is_not(run_of):
    run = run_of(Log(lines=LEAST_LINES - 1), deadline=time.monotonic() + 0.2)
    with pytest.raises(OutOfTimeError):
        run.window(1000, is_full=True)


@pytest.mark.parametrize(
    ("count", "grown"), [(5, [1, 0, 1, 0, 1, 0, 1, 0, 1]), (20, [1, *[2] * 9, 1])]
)
def test_requests_of_a_full_run_come_evenly_over_an_output(run_of, count, grown):
    run = run_of(Log())
    run.grow_over(count, steps=10 * LOG_STEPS)
    assert run.queue.grown == grown
