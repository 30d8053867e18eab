"""What the page is made of: lives of tokens out of messages, in memory and in a file."""

import re
import socket
import time

import numpy as np
import pytest
from fastapi.testclient import TestClient

from benchmarks.harness.server import free_port
from made_up_trace import PROMPT, MadeUpRequest, ended, sampled
from raas_sglang.__main__ import main
from raas_sglang.trace import Received
from raas_sglang.trace.message import TokenTable
from raas_sglang.trace.publisher import TracePublisher
from raas_sglang.view.app import PAGE, make_app
from raas_sglang.view.backlog import Backlog
from raas_sglang.view.book import Book
from raas_sglang.view.follower import Follower
from raas_sglang.view.lives import ALL, QUARTER
from raas_sglang.view.record import RecordWriter, Words, read_records
from raas_sglang.view.server import About, NoTraceError, WatchedServer
from raas_sglang.view.tracker import Tracker
from raas_sglang.view.uses import noted_uses


class Watched:
    """A tracker and the book that it fills."""

    def __init__(self, book=None):
        self.book = book or Book()
        self.tracker = Tracker(*self.book.known())
        self.samples = []

    def take(self, batch):
        self.samples.append(self.tracker.take(batch))
        self.book.take(self.samples[-1])

    def held(self, key, step):
        with self.book.request(key) as request:
            return request.held(step)

    def summary(self, key):
        with self.book.request(key) as request:
            return request.summary()


def levels(held, heads):
    """What `Lives.levels` must say, from the tables themselves."""
    return "".join(str(max(ALL * int(n) // heads, int(n > 0))) for n in held)


@pytest.mark.parametrize("interval", [1, 7, 16])
def test_every_sample_can_be_looked_at_later(interval):
    watched, request, seen = Watched(), MadeUpRequest("a"), {}
    for _ in range(20):
        watched.take(sampled(request.advance(interval)))
        seen[request.step] = levels(request.held, 6)
    for step, held in seen.items():
        assert watched.held(0, step) == held
    assert len(set(seen.values())) == 20
    assert watched.summary(0)["first_step"] == interval - 1
    with watched.book.request(0) as found:
        assert found.sampled(0) == (interval - 1, interval - 1, 2 * interval - 1)
        assert found.sampled(4 * interval - 2) == (
            3 * interval - 1,
            2 * interval - 1,
            4 * interval - 1,
        )
        assert found.sampled(None)[0] == 20 * interval - 1


def test_samples_may_be_missing():
    watched, request = Watched(), MadeUpRequest("a")
    for steps in (3, 40, 1, 90):
        watched.take(sampled(request.advance(steps)))
        assert watched.held(0, request.step) == levels(request.held, 6)


def test_heads_of_two_ranks_are_added_up():
    watched = Watched()
    first, second = MadeUpRequest("a", seed=1), MadeUpRequest("a", heads=1, seed=2)
    for _ in range(9):
        watched.take(sampled(first.advance(8)))
        watched.take(sampled(second.advance(8), rank=1))
    assert watched.held(0, first.step) == levels(first.held + second.held, 9)
    with watched.book.request(0) as found:
        ends = found.lives.life(20).ends
    assert ends.shape == (3, 3)
    holds = (first.births == 20).any(1).reshape(3, 2)
    np.testing.assert_array_equal(ends[:, :2] == -1, holds)


def test_a_life_says_when_each_head_gave_a_token_up():
    watched, request, gone = Watched(), MadeUpRequest("a"), {}
    for _ in range(60):
        watched.take(sampled(request.advance(1)))
        for head in np.flatnonzero(~(request.births == 4).any(1)):
            if request.step >= 4:
                gone.setdefault(int(head), request.step)
    with watched.book.request(0) as found:
        ends = found.lives.life(4).ends.ravel().tolist()
    assert ends == [gone.get(head, -1) for head in range(6)]
    assert gone


def test_a_request_that_was_retracted_goes_on():
    watched, request = Watched(), MadeUpRequest("a")
    watched.take(sampled(request.advance(60)))
    other = MadeUpRequest("b")
    watched.take(sampled(other.advance(3)))
    assert watched.summary(0)["state"] == "waiting"
    request.retract()
    watched.take(sampled(request.advance(4), other.advance(4)))
    assert watched.held(0, request.step) == levels(request.held, 6)
    assert watched.summary(0)["state"] == "running"
    assert watched.summary(0)["back_at"] == [request.step]
    assert len(watched.book.keys()) == 2


def test_a_retracted_request_may_have_lost_a_step():
    watched, request = Watched(), MadeUpRequest("a")
    watched.take(sampled(request.advance(40)))
    request.step -= 2
    request.retract()
    watched.take(sampled(request))
    watched.take(sampled(request.advance(10)))
    assert watched.held(0, request.step) == levels(request.held, 6)
    with watched.book.request(0) as found:
        assert found.steps == [37, 47]


def test_a_dense_request_holds_everything():
    watched, request = Watched(), MadeUpRequest("d", budget=None)
    watched.take(sampled(request.advance(30)))
    watched.take(ended(request.advance(3)))
    assert watched.held(0, request.step) == str(ALL) * 33
    assert watched.summary(0)["state"] == "stop"


def test_tokens_after_the_last_sample_are_not_known():
    watched, request = Watched(), MadeUpRequest("a")
    watched.take(sampled(request.advance(30)))
    held = levels(request.held, 6)
    watched.take(ended(request.advance(5), "length"))
    assert watched.held(0, request.step) == held + "....."
    assert watched.summary(0)["state"] == "length"


def test_a_name_that_is_used_again_is_another_request():
    watched = Watched()
    for _ in range(2):
        request = MadeUpRequest("a")
        watched.take(sampled(request.advance(20)))
        watched.take(ended(request))
    watched.take(sampled(MadeUpRequest("a").advance(9)))
    watched.take(sampled(MadeUpRequest("a", budget=32).advance(70)))
    assert watched.book.keys() == [0, 1, 2, 3], "the last one has another budget"
    assert watched.held(2, 8) == "888888888"


def test_how_the_server_looks_after_itself_is_not_shown():
    watched = Watched()
    health = MadeUpRequest("HEALTH_CHECK_1", budget=None)
    watched.take(sampled(health.advance(1), MadeUpRequest("a").advance(1)))
    assert watched.book.keys() == [0]
    assert watched.summary(0)["rid"] == "a"


def test_requests_of_two_replicas_are_not_the_same():
    watched = Watched()
    watched.take(sampled(MadeUpRequest("a").advance(20)))
    watched.take(sampled(MadeUpRequest("a").advance(5), replica=1))
    assert watched.book.keys() == [0, 1]
    assert [watched.summary(key)["state"] for key in (0, 1)] == ["running", "running"]


def test_what_ran_when_the_server_was_started_anew_is_lost_and_not_forgotten():
    watched, request = Watched(), MadeUpRequest("a")
    watched.take(sampled(request.advance(40)))
    held = watched.held(0, request.step)
    watched.take(sampled(MadeUpRequest("a").advance(40), server=8))
    assert watched.held(0, 39) == held
    assert [watched.summary(key)["state"] for key in (0, 1)] == ["lost", "running"]
    # A viewer that goes on with what an earlier one knew can tell as well.
    later = Watched(watched.book)
    later.take(sampled(MadeUpRequest("b").advance(3), server=8))
    assert later.summary(1)["state"] == "waiting"
    Watched(watched.book).take(sampled(MadeUpRequest("c").advance(3), server=9))
    assert [later.summary(key)["state"] for key in (1, 2, 3)] == ["lost", "lost", "running"]


def test_a_request_that_waits_is_not_forgotten():
    watched = Watched(Book(most_bytes=3000))
    long = MadeUpRequest("long")
    watched.take(sampled(long.advance(40)))
    for number in range(8):
        request = MadeUpRequest(str(number))
        watched.take(sampled(request.advance(40)))
        watched.take(ended(request))
    assert watched.summary(0)["state"] == "waiting"
    assert len(watched.book.keys()) < 9
    watched.take(sampled(long.advance(1)))
    assert watched.summary(0)["state"] == "running"


def test_many_that_ended_are_forgotten_by_number(monkeypatch):
    monkeypatch.setattr("raas_sglang.view.book._MOST_ENDED", 5)
    watched = Watched()
    for number in range(9):
        watched.take(ended(MadeUpRequest(str(number)).advance(3)))
    assert watched.book.keys() == [4, 5, 6, 7, 8]


def test_requests_whose_ends_nobody_heard_are_lost_in_time(monkeypatch):
    monkeypatch.setattr("raas_sglang.view.book.MOST_KNOWN", 3)
    watched = Watched()
    for number in range(6):
        watched.take(sampled(MadeUpRequest(str(number)).advance(3)))
    states = [watched.summary(key)["state"] for key in range(6)]
    assert states == ["lost", "lost", "lost", "waiting", "waiting", "running"]


def test_the_backlog_counts_texts_and_keeps_ends():
    backlog, request = Backlog(most_bytes=4000), MadeUpRequest("dense", budget=None)
    for _ in range(50):
        backlog.put(Received(0, sampled(request.advance(10))))
    backlog.put(Received(0, ended(request)))
    for _ in range(50):
        backlog.put(Received(0, sampled(MadeUpRequest("next", budget=None).advance(500))))
    waiting = [backlog.get().batch for _ in range(len(backlog._waiting))]
    assert len(waiting) < 10
    assert sum(bool(batch.requests[0].finished) for batch in waiting) == 1
    assert backlog._bytes == 0


def test_the_oldest_that_ended_are_forgotten_first():
    watched = Watched(Book(most_bytes=60_000))
    running = MadeUpRequest("running").advance(40)
    for number in range(30):
        request = MadeUpRequest(str(number))
        watched.take(sampled(request.advance(40), running))
        watched.take(ended(request))
        watched.take(sampled(running.advance(1)))
    kept = watched.book.keys()
    assert kept[0] == 1, "it runs"
    assert kept[-1] == 30
    assert 3 < len(kept) < 15
    assert kept[1:] == list(range(kept[1], 31))


def test_the_picture_has_what_the_samples_had():
    watched, request, seen = Watched(), MadeUpRequest("a"), {}
    for _ in range(100):
        watched.take(sampled(request.advance(1)))
        seen[request.step] = request.held.copy()
    with watched.book.request(0) as found:
        whole = found.lives.picture(100, 100, 16)
        small = found.lives.picture(25, 50, 16)
        last_uses = [found.lives.life(token).last_use for token in range(100)]
    for step, held in seen.items():
        level = np.maximum(ALL * held // 6, held > 0)
        np.testing.assert_array_equal((whole[: step + 1, step] & 31) >> 1, level)
        assert not whole[step + 1 :, step].any()
        ages = step - np.arange(step + 1)
        np.testing.assert_array_equal(
            whole[: step + 1, step] >= 32, (level >= QUARTER) & (ages >= 16)
        )
        used = (step <= np.array(last_uses[: step + 1])) & (level > 0)
        np.testing.assert_array_equal(whole[: step + 1, step] & 1, used)
    assert (whole >= 32).any()
    np.testing.assert_array_equal(small, whole.reshape(25, 4, 100).max(1)[:, 1::2])


def test_what_is_recorded_is_shown_again(tmp_path):
    path = tmp_path / "trace"
    watched, request = Watched(), MadeUpRequest("a")
    watched.take(sampled(request.advance(30)))
    watched.take(sampled(request.advance(30)))
    with RecordWriter(path) as writer:
        for item in (*watched.samples, Words([((3,), " three")])):
            writer.write(item)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[-9:-2])  # its writer was stopped
    follower = Follower(None, replay=path)
    with follower.book.request(0) as found:
        assert found.held(59) == levels(request.held, 6)
        assert follower.dictionary.words(found.token_ids, 2)[:3] == ["⟨2⟩", " three", "⟨4⟩"]
    # A second run goes on with it, and with its request.
    with RecordWriter(path) as writer:
        goes_on = Watched(follower.book)
        goes_on.take(sampled(request.advance(7)))
        writer.write(goes_on.samples[0])
    assert len(list(read_records(path))) == 4
    again = Follower(None, replay=path).book
    with again.request(0) as found:
        assert found.held(66) == levels(request.held, 6)
        assert (found.steps, len(found.token_ids)) == ([29, 59, 66], PROMPT + 67)
    assert again.keys() == [0]


def test_another_file_is_refused(tmp_path, capsys):
    path = tmp_path / "notes"
    path.write_text("shopping: bread")
    for name in ("--replay", "--record"):
        assert main(["view", name, str(path)]) == 1
        assert "must be what --record wrote, got b'shopping: bread'" in capsys.readouterr().err
    assert path.read_text() == "shopping: bread"
    assert main(["view", "--replay", str(tmp_path / "gone")]) == 1
    assert "gone" in capsys.readouterr().err
    assert main(["view", "--replay", str(path), "--server", "http://127.0.0.1:1"]) == 2
    assert "without --server and --record" in capsys.readouterr().err


def test_a_port_that_is_taken_is_refused_by_name(tmp_path, capsys):
    with RecordWriter(tmp_path / "trace"):
        pass
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["view", "--replay", str(tmp_path / "trace"), "--port", str(port)]) == 1
    assert f"error: --port must be free, got {port}" in capsys.readouterr().err


def test_the_page_answers_to_this_machine_alone_and_has_all_that_it_names():
    app = make_app(Follower(None))
    client = TestClient(app, base_url="http://127.0.0.1:8765")
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["Content-Security-Policy"].startswith("default-src 'self'")
    named = re.findall(r'(?:href|src)="(/[^"]+)"', page.text)
    assert len(named) == 3
    for name in named:
        assert client.get(name).status_code == 200, name
    assert client.get("/requests/3").status_code == 404
    assert TestClient(app, base_url="http://rebound.example").get("/").status_code == 400
    assert TestClient(app, base_url="http://rebound.example").get("/requests/3").status_code == 400


def test_the_page_fetches_nothing_from_elsewhere():
    for path in PAGE.iterdir():
        assert not re.search(r"://|[\"'(]//", path.read_text()), path


@pytest.mark.parametrize(
    ("policy", "weights", "expected"),
    [
        ("raas", [-1.0, -5.0, 0.0, -6.0], [True, False, False, False]),
        ("raas-paper", [8.0, 10.0, 11.0, 9.0], [False, False, True, False]),
        ("h2o", [5.0, 0.2, 0.0, 1.1], [True, False, False, False]),
    ],
)
def test_uses_are_what_the_policy_notes(policy, weights, expected):
    births = np.arange(4, dtype=np.int32).reshape(1, 1, 4)
    before = TokenTable(births, np.array([[[4.0, 0.1, 0.0, 1.0]]], np.float32))
    after = TokenTable(births, np.array([[weights]], np.float32))
    assert noted_uses(policy)(after, before, 10).ravel().tolist() == expected


@pytest.mark.parametrize("policy", ["window", "random", "dense"])
def test_policies_that_note_nothing_have_no_uses(policy):
    assert noted_uses(policy) is None


def test_the_endpoints_of_all_ranks_come_from_the_server(monkeypatch):
    server = WatchedServer("http://gpu7:30000/")
    info = {"kv_trace_endpoint": "tcp://*:5558", "tp_size": 2, "dp_size": 2}
    monkeypatch.setattr(server, "_call", lambda route: info)
    assert server.about().endpoints == [f"tcp://gpu7:{port}" for port in range(5558, 5562)]
    info["kv_trace_endpoint"] = "tcp://127.0.0.1:5558"
    assert server.about().endpoints[0] == "tcp://127.0.0.1:5558"
    info["kv_trace_endpoint"] = None
    with pytest.raises(NoTraceError, match="restart it with that flag"):
        server.about()


class Server:
    """Stands for a `WatchedServer`."""

    url = "http://made.up"

    def __init__(self, *endpoints):
        self.endpoints, self.tokenizer = list(endpoints), "one"

    def about(self):
        return About(self.endpoints, self.tokenizer)

    def detokenize(self, lists):
        return ["word"] * len(lists)


def publish_until(condition, *senders):
    """Sends the next messages of each publisher until something is true of what is shown."""
    for number in range(2000):
        if condition():
            return
        for publisher, batch in senders:
            publisher.publish(number, lambda batch=batch: batch)
        time.sleep(0.01)
    raise AssertionError("it is not shown")


def test_a_server_that_is_started_anew_is_asked_anew():
    """It may have more ranks by then; with another tokenizer its words would be wrong."""
    ends = [f"tcp://127.0.0.1:{free_port()}" for _ in range(2)]
    first, second = map(TracePublisher, ends)
    server = Server(ends[0])
    follower = Follower(server)
    request = MadeUpRequest("a").advance(20)
    publish_until(follower.book.keys, (first, sampled(request, server=1)))
    server.endpoints = ends

    def heads():
        return sum(row["heads"] for row in follower.book.changed(0)[1] if row["state"] != "lost")

    both = (first, sampled(request, server=2)), (second, sampled(request, rank=1, server=3))
    publish_until(lambda: heads() == 12, *both)
    assert follower.book.keys() == [0, 1]
    server.tokenizer = "another"
    publish_until(lambda: "stopped" in follower.status, (first, sampled(request, server=4)))
    assert "must have the tokenizer one of what is shown, got another" in follower.status
    assert follower.book.keys() == [0, 1], "and what came with it is not shown"
    for publisher in (first, second):
        publisher.close()


@pytest.mark.parametrize("url", ["localhost:30000", "gpu7", "ftp://gpu7"])
def test_a_server_must_be_a_url(url, capsys):
    assert main(["view", "--server", url]) == 1
    assert f"--server must be http://HOST:PORT, got '{url}'" in capsys.readouterr().err


def test_a_file_is_written_by_one_viewer(tmp_path):
    with RecordWriter(tmp_path / "trace"), pytest.raises(ValueError, match="by one viewer alone"):
        RecordWriter(tmp_path / "trace")


def test_a_damaged_file_says_where(tmp_path):
    path = tmp_path / "trace"
    with RecordWriter(path) as writer:
        writer.write(Words([((1,), "one")]))
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + bytes(64))
    with pytest.raises(ValueError, match=rf"after {size} bytes .*truncate -s {size} FILE"):
        RecordWriter(path)
