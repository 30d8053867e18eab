"""SGLang's own limits of the waiting queue, called as a scheduler does, with our hooks around."""

import time
from types import SimpleNamespace

import pytest
from raas_patches.waiting_queue import abort_on_queued_limit, abort_on_waiting_timeout
from sglang.srt.environ import envs
from sglang.srt.managers.scheduler import Scheduler


def req(rid, retractions=0, priority=0):
    """A request that has waited for a minute."""
    trace = SimpleNamespace(abort=lambda **_: None)
    stats = SimpleNamespace(wait_queue_entry_time=time.perf_counter() - 60, trace_ctx=trace)
    return RequestStub(rid, retractions, priority, stats)


class RequestStub:
    def __init__(self, rid, retraction_count, priority, time_stats):
        self.rid, self.retraction_count = rid, retraction_count
        self.priority, self.time_stats = priority, time_stats


def scheduler(*queue, limit=1, by_priority=False):
    """A scheduler with these requests in its queue, which notes whom it ends."""
    ended = []
    channel = SimpleNamespace(send_output=lambda message, _: ended.append(message.rid))
    return SimpleNamespace(
        waiting_queue=list(queue),
        max_queued_requests=limit,
        enable_priority_scheduling=by_priority,
        schedule_low_priority_values_first=False,
        enable_hicache_storage=False,
        enable_hierarchical_cache=False,
        ipc_channels=SimpleNamespace(send_to_tokenizer=channel),
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
        abort_on_waiting_timeout(Scheduler._abort_on_waiting_timeout, one)
    assert (rids(one), one.ended) == (["a", "b"], ["new"])
