"""SGLang's own limits of the waiting queue, called as a scheduler does, with our hooks around."""

import time
from types import SimpleNamespace

import pytest
from sglang.srt.environ import envs
from sglang.srt.managers import scheduler as sglang_scheduler
from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.scheduler import Scheduler

from raas_patches.scheduler import abort_on_queued_limit, poll_timeout_aborts, send_abort_output


@pytest.fixture(autouse=True)
def unpublished(monkeypatch):
    """What SGLang answers an aborted request needs settings that no server published here."""
    monkeypatch.setattr(sglang_scheduler, "_make_abort_req", lambda req, **_: req)


def req(rid, retractions=0, priority=0, skipped=0):
    """A request that has waited for a minute."""
    trace = SimpleNamespace(abort=lambda **_: None)
    waited = time.perf_counter() - 60
    stats = SimpleNamespace(
        wait_queue_entry_time=waited, trace_ctx=trace, set_completion_time=lambda: None
    )
    return RequestStub(rid, retractions, priority, stats, skipped)


class RequestStub:
    def __init__(self, rid, retraction_count, priority, time_stats, skipped_len):
        self.rid, self.retraction_count = rid, retraction_count
        self.priority, self.time_stats = priority, time_stats
        self.return_logprob, self.finished_reason = False, None
        options = SimpleNamespace(budget=64)
        self.raas = SimpleNamespace(skipped_len=skipped_len, options=options)


def scheduler(*queue, limit=1, by_priority=False, linear_attention=False):
    """A scheduler with these requests in its queue, which notes whom it ends."""
    ended = []
    streamer = SimpleNamespace(stream_output=lambda reqs, _: ended.extend(r.rid for r in reqs))
    return SimpleNamespace(
        waiting_queue=list(queue),
        max_queued_requests=limit,
        enable_priority_scheduling=by_priority,
        schedule_low_priority_values_first=False,
        beam_coordinator=SimpleNamespace(retire_group=lambda _: None),
        _release_aborted_request=lambda _: None,
        send_abort_output=lambda message, _: ended.append(message.rid),
        output_streamer=streamer,
        tree_cache=SimpleNamespace(supports_mamba=lambda: linear_attention),
        ended=ended,
    )


def limited(one, new):
    return abort_on_queued_limit(Scheduler._abort_on_queued_limit, one, new)


def rids(one):
    return [r.rid for r in one.waiting_queue]


@pytest.mark.parametrize("by_priority", [False, True])
def test_a_retracted_request_is_never_turned_away(by_priority):
    one = scheduler(req("a"), req("b", retractions=1), by_priority=by_priority)
    assert not limited(one, req("c", retractions=2, priority=-5))
    assert (rids(one), one.ended) == (["a", "b"], [])


def test_with_linear_attention_nothing_is_left_out():
    one = scheduler(limit=9, linear_attention=True)
    assert not limited(one, req("whole", retractions=1))
    assert limited(one, req("outgrown", retractions=1, skipped=3))
    assert limited(one, req("sent again", skipped=3))
    assert one.ended == ["outgrown", "sent again"]
    assert not limited(scheduler(), req("without", retractions=1, skipped=3))


def test_retracted_requests_take_no_place_of_new_ones():
    one = scheduler(req("a", retractions=1), req("b", retractions=1))
    assert not limited(one, req("new"))
    one.waiting_queue.append(req("new"))
    assert limited(one, req("newer"))
    assert (rids(one), one.ended) == (["a", "b", "new"], ["newer"])


def test_an_urgent_request_takes_the_place_of_a_new_one():
    one = scheduler(req("a", retractions=1), req("new"), req("b", retractions=1), by_priority=True)
    assert not limited(one, req("urgent", priority=5))
    assert (rids(one), one.ended) == (["a", "b"], ["new"])


def test_the_waiting_timeout_ends_new_requests_alone():
    one = scheduler(req("a", retractions=1), req("new"), req("b", retractions=3))
    with envs.SGLANG_REQ_WAITING_TIMEOUT.override(2):
        aborts = poll_timeout_aborts(Scheduler._poll_timeout_aborts, one)
    assert [abort.rid for abort in aborts] == ["new"]
    assert rids(one) == ["a", "new", "b"]


def test_a_request_that_is_ended_says_why():
    reason = {"type": "abort", "message": "Request waiting timeout reached.", "status_code": 503}
    one, ended = scheduler(), [req("a"), req("b")]
    for each, why in zip(ended, (None, reason), strict=True):
        send_abort_output(None, one, AbortReq(rid=each.rid, finished_reason=why), each)
    assert one.ended == ["a", "b"]
    ends = [(r.finished_reason.message, r.finished_reason.status_code) for r in ended]
    assert ends == [("Abort in waiting queue", None), (reason["message"], 503)]
