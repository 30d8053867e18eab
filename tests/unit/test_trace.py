"""The trace stream: what is sampled, packed and sent is what the eviction state held."""

import itertools
import os
import sys
import threading
from contextlib import closing
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
import zmq

from benchmarks.harness.server import free_port
from raas_kernels import Policy
from raas_patches.tp_worker import endpoint_of_rank
from raas_sglang.__main__ import main
from raas_sglang.config import RaasConfig
from raas_sglang.trace import (
    RequestTrace,
    Subscription,
    TokenTrace,
    TraceBatch,
    listen,
    reused,
    subscriber,
    token_table,
)
from raas_sglang.trace.publisher import TracePublisher
from raas_sglang.trace.sampler import TokenSampler
from raas_sglang.trace.subscriber import Received, lines
from token_tables import CONFIG, HEADS, LAYERS, Kept, buffers, request


@pytest.fixture
def kept():
    return Kept()


def test_a_sample_holds_the_tokens_of_evicting_rows_of_that_step(kept):
    state = buffers()
    sampler = TokenSampler(state, CONFIG, kept, attn_dp_rank=1, tp_rank=2)
    rows = [request("a", 33), request("dense", 90, Policy.DENSE), request("b", 80)]
    sampler.sample(torch.tensor([4, 1, 2]), rows)
    before = SimpleNamespace(births=state.births.clone(), weights=state.weights.clone())
    for tensor in (state.births, state.weights):
        tensor.zero_()  # the next step
    rows[0].state.logical_len += 7
    rows[0].output_ids.extend(range(33, 40))  # the copy is nobody's view, so it can grow
    sequence, batch = kept.arrive()
    assert (sequence, batch.attn_dp_rank, batch.tp_rank) == (0, 1, 2)
    assert [event.rid for event in batch.events] == ["a", "b"]
    for event, slot, tokens in zip(batch.events, (4, 2), (33, 64), strict=True):
        table = token_table(event)
        assert event.shape == (LAYERS, HEADS, tokens)
        np.testing.assert_array_equal(table.births, before.births[:, slot, :, :tokens])
        np.testing.assert_array_equal(table.weights, before.weights[:, slot, :, :tokens])
    first = batch.events[0]
    assert (first.step, first.logical_len, first.resident_len) == (32, 43, 43)
    assert (first.policy, first.budget, first.prompt_len) == ("raas", 64, 10)
    assert batch.requests == [], "the same on all ranks, so rank 0 tells"


def test_rank_0_tells_the_text_of_every_request(kept):
    sampler = TokenSampler(buffers(), CONFIG, kept, attn_dp_rank=1, tp_rank=0)
    rows = [
        request("a", 80),
        request("dense", 90, Policy.DENSE),
        request("hidden", 3, traced=False),
    ]
    sampler.sample(torch.tensor([4, 1, 2]), rows)
    _, batch = kept.arrive()
    assert [event.rid for event in batch.events] == ["a"]
    assert [(text.rid, text.policy, text.budget) for text in batch.requests] == [
        ("a", "raas", 64),
        ("dense", "dense", None),
    ]
    for text, generated, held in zip(batch.requests, (80, 90), (64, 90), strict=True):
        assert (text.prompt_len, text.logical_len) == (10, 10 + generated)
        assert (text.resident_len, text.finished) == (10 + held, None)
        ids = np.frombuffer(text.token_ids, "<i4").tolist()
        assert ids == [*range(100, 110), *range(generated)]


def test_an_end_tells_the_whole_text(kept):
    for rank in (0, 1):
        sampler = TokenSampler(buffers(), CONFIG, kept, attn_dp_rank=0, tp_rank=rank)
        sampler.end(request("a", 17), "length")
        sampler.end(request("hidden", 17, traced=False), "length")
    ((sequence, sample),) = kept.samples
    batch = sample()
    assert (sequence, batch.events) == (0, [])
    assert [(text.rid, text.finished) for text in batch.requests] == [("a", "length")]
    assert np.frombuffer(batch.requests[0].token_ids, "<i4").tolist()[-1] == 16


def test_a_request_that_nobody_may_see_leaves_no_trace(kept):
    state = buffers()
    sampler = TokenSampler(state, CONFIG, kept, 0, 0)
    rows = [request("hidden", 33, traced=False), request("a", 20)]
    sampler.sample(torch.tensor([3, 1]), rows)
    _, batch = kept.arrive()
    assert [event.rid for event in batch.events] == ["a"]
    np.testing.assert_array_equal(token_table(batch.events[0]).births, state.births[:, 1, :, :20])
    sampler.sample(torch.tensor([3]), rows[:1])
    assert kept.samples == []


def test_only_every_interval_th_step_is_due(kept):
    sampler = TokenSampler(buffers(), CONFIG, kept, 0, 0)
    assert [sampler.is_due() for _ in range(7)] == [True, False, False, True, False, False, True]


def test_a_batch_without_evicting_rows_has_texts_alone(kept):
    sampler = TokenSampler(buffers(), CONFIG, kept, 0, 0)
    sampler.sample(torch.tensor([1]), [request("dense", 90, Policy.DENSE)])
    _, batch = kept.arrive()
    assert batch.events == []
    assert batch.requests[0].rid == "dense"
    TokenSampler(buffers(), CONFIG, kept, 0, 1).sample(
        torch.tensor([1]), [request("dense", 90, Policy.DENSE)]
    )
    assert kept.samples == []


def test_a_sample_that_finds_no_buffer_leaves_a_gap(kept):
    sampler = TokenSampler(buffers(), CONFIG, kept, 0, 0)
    for _ in range(3):
        sampler.sample(torch.tensor([1]), [request("a", 33)])
    assert [kept.arrive()[0], kept.arrive()[0]] == [0, 1]
    sampler.sample(torch.tensor([1]), [request("a", 33)])
    assert kept.arrive()[0] == 3
    assert kept.samples == []


def test_a_message_is_not_overwritten_by_the_next_samples(kept):
    """A subscriber that lags reads it after its buffer has been used again."""
    state = buffers()
    sampler = TokenSampler(state, CONFIG, kept, 0, 0)
    rows = [request("alone", 64)]  # whose tables are all of the buffer
    sampler.sample(torch.tensor([1]), rows)
    event = kept.samples.pop()[1]().events[0]  # not packed: its tables are frames of their own
    sent = [bytes(table) for table in (event.births, event.weights)]
    for tensor in (state.births, state.weights):
        tensor.zero_()
    for _ in range(2):
        sampler.sample(torch.tensor([1]), rows)
        kept.arrive()
    assert [bytes(event.births), bytes(event.weights)] == sent


def test_what_is_published_arrives_and_reads_as_lines(kept):
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    publisher = TracePublisher(endpoint)
    state = buffers()
    sampler = TokenSampler(state, CONFIG, kept, 0, 0)
    arrived = []

    def subscribe():
        for message in listen([endpoint], timeout_s=20):
            arrived.append(message)
            if message.batch.events[0].rid == "last":
                return

    thread = threading.Thread(target=subscribe)
    thread.start()
    sent = 0
    # A subscriber misses what is published before it is connected.
    while not arrived and sent < 1000:
        sampler.sample(torch.tensor([1]), [request("a", 63 + sent)])
        publisher.publish(*kept.samples.pop())
        sent += 1
        thread.join(0.02)
    state.births[:, 1, :, :16] += 64
    sampler.sample(torch.tensor([1, 1]), [request("last", 5), request("a", 63 + sent)])
    publisher.publish(*kept.samples.pop())
    thread.join()
    publisher.close()
    assert arrived[-1].sequence == sent
    first, last = (token_table(m.batch.events[-1]) for m in (arrived[0], arrived[-1]))
    given_up = reused(first, last)[
        0, 0
    ]  # how many tokens the first message had is a matter of time
    np.testing.assert_array_equal(given_up, np.arange(len(given_up)) < 16)
    printed = list(lines(arrived))
    assert printed[0].split()[1:5] == ["dp0", "tp0", "a", "raas"]
    assert "given up - " in printed[0]
    assert "given up 25% " in printed[-1]
    assert f"resident 74 of {73 + sent} " in printed[-1]


def test_a_line_says_how_old_the_tokens_are(kept):
    state = buffers()
    state.births[..., :33] = torch.arange(33)
    sampler = TokenSampler(state, CONFIG, kept, 0, 0)
    sampler.sample(torch.tensor([1]), [request("a", 33)])
    (line,) = lines([Received(*kept.arrive())])
    assert line.endswith("given up - oldest 32 median age 16")


def test_lines_go_as_far_as_somebody_reads_them(monkeypatch):
    """As of `python -m raas_sglang trace ... | head -1`."""
    monkeypatch.setattr(subscriber, "listen", lambda _: [])
    monkeypatch.setattr(subscriber, "lines", lambda _: itertools.repeat("a line"))
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        thread = threading.Thread(target=lambda: (os.read(reader, 6), os.close(reader)))
        thread.start()
        assert main(["trace", "tcp://127.0.0.1:1"]) == 0
        thread.join()


def test_a_name_that_is_used_again_is_another_request(kept):
    sampler = TokenSampler(buffers(), CONFIG, kept, 0, 0)
    for generated in (60, 5, 7):
        sampler.sample(torch.tensor([1]), [request("a", generated)])
        if len(kept.samples) == 2:  # as many as there are buffers
            first, second = (Received(*kept.arrive()) for _ in range(2))
    third = Received(*kept.arrive())
    printed = list(lines([first, second, third]))
    assert ["given up - " in line for line in printed] == [True, True, False]


def test_a_name_may_have_another_budget(kept):
    """By `kv_prompt_len`, say, or with samples that are far apart."""
    small, large = (
        TokenTrace(
            "a", "raas", budget, 10, logical, 10 + budget, (1, 1, budget), *[bytes(4 * budget)] * 2
        )
        for budget, logical in ((16, 40), (32, 60))
    )
    batches = [TraceBatch(0.0, [event], 0, 0) for event in (small, large)]
    printed = list(lines(Received(number, batch) for number, batch in enumerate(batches)))
    assert ["given up - " in line for line in printed] == [True, True]


def test_lines_of_two_ranks_are_not_compared_with_each_other(kept):
    sampler = TokenSampler(buffers(), CONFIG, kept, 0, 0)
    sampler.sample(torch.tensor([1]), [request("a", 33)])
    _, batch = kept.arrive()
    other = msgspec.structs.replace(batch, tp_rank=1)
    printed = lines([Received(0, batch), Received(0, other), Received(1, batch)])
    assert ["given up - " in line for line in printed] == [True, True, False]


def test_a_message_of_another_version_is_refused(capsys):
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    socket = zmq.Context.instance().socket(zmq.XPUB)
    socket.bind(endpoint)
    table = np.zeros(1, "<i4").tobytes()
    event = TokenTrace("a", "raas", 16, 5, 6, 6, (1, 1, 1), table, table)
    whole = msgspec.msgpack.encode(TraceBatch(0.0, [event], 0, 0))

    def answer():
        socket.recv()  # the subscription
        socket.send_multipart([b"kv-trace", bytes(8), whole])

    thread = threading.Thread(target=answer)
    thread.start()
    assert main(["trace", endpoint]) == 1
    assert "error: a message with 1 events must have two tables for" in capsys.readouterr().err
    thread.join()
    socket.close()


def test_an_endpoint_in_use_is_refused_by_name():
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    publisher = TracePublisher(endpoint)
    with pytest.raises(RuntimeError, match=f"must be free to bind, got {endpoint}"):
        TracePublisher(endpoint)
    publisher.close()


def test_an_endpoint_that_is_none_is_refused():
    with pytest.raises(RuntimeError, match="must be tcp://HOST:PORT of a server, got localhost"):
        next(listen(["localhost"]))


@pytest.mark.parametrize(
    ("address", "open_to_all"), [("127.0.0.1", False), ("*", True), ("0.0.0.0", True)]
)
def test_an_endpoint_that_others_reach_is_warned_of(address, open_to_all, caplog):
    TracePublisher(f"tcp://{address}:{free_port()}").close()
    assert ("is open to everyone who reaches the port" in caplog.text) is open_to_all


@pytest.mark.parametrize("size", [60_000, 1 << 20])
def test_no_more_waits_for_a_slow_subscriber_than_memory_allows(size, monkeypatch):
    """Of texts as well, which every message has whole, and of frames that ZMQ would copy."""
    monkeypatch.setattr("raas_sglang.trace.publisher._MOST_BYTES", 1 << 24)
    endpoint, count = f"tcp://127.0.0.1:{free_port()}", (1 << 26) // size
    message = TraceBatch(0.0, [], 0, 0, [RequestTrace("a", "dense", None, 1, 1, 1, bytes(size))])
    publisher = TracePublisher(endpoint)
    with closing(Subscription([endpoint])) as subscription:
        while subscription.receive(0.05) is None:
            publisher.publish(0, lambda: TraceBatch(0.0, [], 0, 0, []))
        for number in range(1, count + 1):
            publisher.publish(number, lambda: message)
        publisher.close()  # once all of it was handed to ZMQ, or left out
        assert sum(waiting for _, waiting in publisher._on_way) <= 1 << 24
        assert len(publisher._on_way) < count


def test_a_subscriber_that_does_not_read_takes_nothing_from_the_others(monkeypatch):
    monkeypatch.setattr("raas_sglang.trace.publisher._MOST_BYTES", 1 << 24)
    endpoint, size, count = f"tcp://127.0.0.1:{free_port()}", 1 << 20, 100
    message = TraceBatch(0.0, [], 0, 0, [RequestTrace("a", "dense", None, 1, 1, 1, bytes(size))])
    publisher = TracePublisher(endpoint, size)
    with closing(Subscription([endpoint])) as stalled, closing(Subscription([endpoint])) as other:
        for subscription in (stalled, other):
            while subscription.receive(0.05) is None:
                publisher.publish(0, lambda: TraceBatch(0.0, [], 0, 0, []))
        heard = set()
        for number in range(1, count + 1):
            publisher.publish(number, lambda: message)
            while number not in heard and (received := other.receive(5)) is not None:
                heard.add(received.sequence)
        assert heard >= set(range(1, count + 1))
    publisher.close()


def test_a_subscription_can_move():
    ends = [f"tcp://127.0.0.1:{free_port()}" for _ in range(2)]
    publishers = [TracePublisher(end) for end in ends]
    with closing(Subscription(ends[:1])) as subscription:
        subscription.connect(ends[1:])
        heard = set()
        for _ in range(40):
            for number, publisher in enumerate(publishers):
                publisher.publish(number, lambda: TraceBatch(0.0, [], 0, 0, []))
            if (received := subscription.receive(0.05)) is not None:
                heard.add(received.sequence)
        assert heard == {1}
    for publisher in publishers:
        publisher.close()


@pytest.mark.parametrize("port", ["0", "65536", "70000", "x", ""])
def test_a_trace_port_is_one(port):
    with pytest.raises(ValueError, match="with a port from 1 to 65535"):
        RaasConfig(kv_policy="raas", kv_trace_endpoint=f"tcp://127.0.0.1:{port}")


def test_every_rank_has_a_port():
    assert endpoint_of_rank("tcp://*:5558", 3) == "tcp://*:5561"


def test_the_flag_is_what_turns_it_on():
    assert CONFIG.traced
    assert not RaasConfig(kv_policy="raas").traced


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"kv_trace_endpoint": "5558"}, "from 1 to 65535, got '5558'"),
        ({"kv_trace_endpoint": "ipc:///tmp/x"}, "use tcp://"),
        ({"kv_trace_interval": 0}, "positive number of decode steps, got 0"),
        ({"kv_trace_interval": True}, "got True"),
    ],
)
def test_bad_settings_say_what_must_hold(settings, text):
    with pytest.raises(ValueError, match=text):
        RaasConfig(kv_policy="raas", **settings)
