"""`/metrics`, the log line, the answers and the trace stream say the same of one real run."""

import json
import re
import threading
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.harness.server import LocalServer
from client import FOREVER, events, generate, paused, post, problem, request, together, token_ids
from conftest import trace_endpoint
from raas_sglang.metrics import METRIC_NAMES
from raas_sglang.trace import Received, listen, reused, token_table
from raas_sglang.trace.message import TOKEN_DTYPE

DASHBOARD = Path(__file__).parents[2] / "examples" / "monitoring" / "raas-dashboard.json"
LOG_PART = re.compile(
    r"#raas-req: (\d+), #logical token: (\d+), #resident token: (\d+), #evicted token: (\d+), "
    r"budget usage: ([\d.]+), "
)
PERIOD = 4


class Observed(NamedTuple):
    """One batch of every policy, seen from everywhere."""

    server: LocalServer
    received: list[Received]
    before: dict[tuple[str, str], float]
    answers: list[dict]
    after: dict[tuple[str, str], float]


@pytest.fixture(scope="module")
def observed(traced_server):
    """What a server with everything on says while it runs."""
    received = []
    stop = threading.Event()

    def subscribe():
        while not stop.is_set():
            received.extend(listen([trace_endpoint(traced_server)], timeout_s=5))

    thread = threading.Thread(target=subscribe)
    thread.start()
    generate(traced_server, problem(6).prompt, "raas", 16, tokens=40, **FOREVER)
    before = scrape(traced_server)
    answers = run_all(traced_server)
    yield Observed(traced_server, received, before, answers, scrape(traced_server))
    stop.set()
    thread.join()


def scrape(server) -> dict[tuple[str, str], float]:
    """Value of each metric of a policy, and of SGLang's own under the policy ``""``."""
    text = requests.get(server.url + "/metrics", timeout=60).text
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    return {(s.name, s.labels.get("kv_policy", "")): s.value for s in samples}


def run_all(server) -> list[dict]:
    """One batch of several policies; what the answers say of it."""
    asked = problem(8).prompt
    policies = ("raas", "raas", "window", "random", "dense")
    calls = [
        lambda policy=policy, tokens=tokens: generate(server, asked, policy, 32, tokens, **FOREVER)
        for policy, tokens in zip(policies, (150, 97, 120, 81, 90), strict=True)
    ]
    return [answer["meta_info"] for answer in together(calls)]


def test_counters_are_what_the_answers_report(observed):
    for policy in ("raas", "window", "random", "dense", "h2o"):
        evicted = [a["evicted_tokens"] for a in observed.answers if a["kv_policy"] == policy]
        for name, expected in (
            ("sglang:kv_evictions_total", sum(evicted)),
            ("sglang:kv_saved_reads_total", sum(n * (n + 1) // 2 for n in evicted)),
        ):
            grown = observed.after[name, policy] - observed.before[name, policy]
            assert grown == expected, (name, policy)


def test_counters_follow_an_aborted_request_to_its_end(observed):
    server, name = observed.server, ("sglang:kv_evictions_total", "random")
    before = scrape(server)[name]
    answers = []
    body = request(problem(6).prompt, "random", 16, 12000, rid="to-abort", **FOREVER)
    thread = threading.Thread(target=lambda: answers.append(post(server, "/generate", body)))
    thread.start()
    while thread.is_alive() and scrape(server)[name] < before + 40:
        time.sleep(0.1)
    post(server, "/abort_request", {"rid": "to-abort"})
    thread.join()
    info = answers[0].json()["meta_info"]
    assert info["finish_reason"]["type"] == "abort"
    assert scrape(server)[name] - before == info["evicted_tokens"]


def test_the_log_of_an_answer_is_its_report_whatever_its_length(observed):
    lines = [line for line in observed.server.log().splitlines() if "Finish: obj=" in line]
    said = {}
    for info in observed.answers:
        (line,) = (line for line in lines if info["id"] in line)
        assert f"'evicted_tokens': {info['evicted_tokens']}" in line
        assert "'raas':" not in line, "the key under which the report travels"
        assert "None, None" not in line
        said[info["completion_tokens"], info["kv_policy"]] = len(line)
    short, long = said[97, "raas"], said[150, "raas"]
    assert abs(short - long) < 40, "digits of numbers"


def test_counters_count_once_what_an_answer_gave_up_that_is_sent_again(observed):
    server = observed.server
    ids = token_ids(server, problem(6).prompt)
    first = generate(server, ids, "raas", 16, 60, **FOREVER)
    before = scrape(server)
    again = [*ids, *first["output_ids"]]
    answer = generate(server, again, "raas", 16, 30, prompt_len=len(ids), **FOREVER)
    evicted = first["meta_info"]["evicted_tokens"], answer["meta_info"]["evicted_tokens"]
    # SGLang does not compute the last token of an answer; sent again, it is one more to give up.
    assert evicted == (43, 73)
    after = scrape(server)
    for name, expected in (
        ("sglang:kv_evictions_total", 73 - 44),
        ("sglang:kv_saved_reads_total", sum(range(45, 74))),
    ):
        assert after[name, "raas"] - before[name, "raas"] == expected, name


def test_polls_are_answered_while_six_requests_fill_the_pool(observed):
    server = observed.server
    prompts = [[5 + index] * 1600 for index in range(6)]
    calls = [lambda ids=ids: generate(server, ids, "raas", 64, 100, **FOREVER) for ids in prompts]
    thread = threading.Thread(target=together, args=(calls,))
    thread.start()
    polls = 0
    while thread.is_alive():
        for route in ("/health", "/v1/loads?include=all", "/metrics", "/server_info"):
            assert requests.get(server.url + route, timeout=60).status_code == 200, route
        polls += 1
    assert polls


def gauges(server) -> tuple:
    found = scrape(server)
    names = ("running_reqs", "logical_tokens", "resident_tokens", "evicted_tokens")
    counts = (int(found[f"sglang:kv_{name}", "raas"]) for name in names)
    return (*counts, f"{found['sglang:kv_budget_usage', 'raas']:.2f}")


def test_gauges_are_what_the_log_line_says_and_go_back_to_zero(observed):
    server = observed.server
    seen = set()
    done = threading.Event()

    def watch():
        while not done.is_set():
            first, second = gauges(server), gauges(server)
            # Not while they are set, and not from the prefill, which has a log line of its own.
            if first == second and first[3]:
                seen.add(first)

    watcher = threading.Thread(target=watch)
    watcher.start()
    info = generate(server, problem(8).prompt, "raas", 64, tokens=400, **FOREVER)["meta_info"]
    done.set()
    watcher.join()
    logged = [(*map(int, found[:4]), found[4]) for found in LOG_PART.findall(server.log())]
    assert len(seen) > 1
    assert seen <= set(logged)
    for _, logical, resident, evicted, _ in logged:
        assert evicted == logical - resident
    assert any(resident == info["resident_tokens"] for _, _, resident, _, _ in seen)
    assert max(evicted for _, _, _, evicted, _ in seen) <= info["evicted_tokens"]
    began = time.monotonic()
    while gauges(server)[0] and time.monotonic() - began < 60:
        time.sleep(0.2)
    assert gauges(server) == (0, 0, 0, 0, "0.00")


def test_the_trace_shows_the_steps_that_the_answers_report(observed):
    """A sample that would have had to wait is left out, and the sequence number shows it."""
    samples, others = defaultdict(list), 0
    for sequence, batch in list(observed.received):
        others += not batch.events  # of ends and of dense requests alone
        for event in batch.events:
            samples[event.rid].append((sequence - others, event))
    for info in observed.answers:
        seen = samples[info["id"]]
        if info["kv_policy"] == "dense":
            assert not seen
            continue
        events = [event for _, event in seen]
        last = events[-1]
        assert (last.policy, last.budget) == (info["kv_policy"], 32)
        assert {event.logical_len - event.step for event in events} == {last.prompt_len + 1}
        kept = [min(event.step + 1, event.budget) for event in events]
        assert [event.resident_len - event.prompt_len for event in events] == kept
        steps = range(info["logical_tokens"] - last.prompt_len)
        assert last.step in steps
        assert info["resident_tokens"] == last.prompt_len + min(len(steps), last.budget)
        assert len(events) > len(steps) / 2, "a machine under load loses a few"
        assert len({number - event.step for number, event in seen}) == 1
        assert len(steps) - last.budget == info["evicted_tokens"]
        assert_tokens_follow_the_rules(events)


def assert_tokens_follow_the_rules(events):
    """Each step against the sample before it."""
    tables = [token_table(event) for event in events]
    for event, table in zip(events, tables, strict=True):
        assert (table.births.max(2) == event.step).all(), "the newest token is there"
    for (earlier, before), (event, after) in pairwise(zip(events, tables, strict=True)):
        if event.step > earlier.step + 1:
            continue
        given_up = reused(before, after)
        assert (given_up.sum(2) == (event.step >= event.budget)).all(), "each head, each step"
        if event.policy == "raas" and event.step % PERIOD == 0:
            old = before.births < event.step - event.budget // 4
            least = np.where(old, before.weights, np.inf).min(2, keepdims=True)
            assert (given_up <= (old & (before.weights == least))).all()
        if event.policy == "window":
            assert (given_up <= (before.births == before.births.min(2, keepdims=True))).all()


def test_a_refused_stream_counts_as_what_it_was_answered_with(observed):
    def answered(status: int) -> float:
        text = requests.get(observed.server.url + "/metrics", timeout=60).text
        labels = {"endpoint": "/generate", "status_code": str(status), "method": "POST"}
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "sglang:http_responses_total" and sample.labels == labels
        )

    before = answered(200), answered(400)
    body = request("solve", sampling_params={"regex": "(["}, stream=True)
    assert post(observed.server, "/generate", body).status_code == 400
    began = time.monotonic()  # SGLang counts it when it has aborted it once more, 2 s later
    while answered(400) == before[1] and time.monotonic() - began < 60:
        time.sleep(0.2)
    assert (answered(200), answered(400)) == (before[0], before[1] + 1)


def test_every_metric_of_the_dashboard_exists(observed):
    dashboard = json.loads(DASHBOARD.read_text())
    asked = set(re.findall(r"sglang:\w+", json.dumps(dashboard)))
    exposed = {name for name, _ in observed.after}
    assert asked <= exposed, asked - exposed
    assert set(METRIC_NAMES) <= asked, "the dashboard shows all of ours"
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_labels_are_sglangs(observed):
    text = requests.get(observed.server.url + "/metrics", timeout=60).text
    labels = {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    for name in METRIC_NAMES:
        assert labels[name] == labels["sglang:num_running_reqs"] | {"kv_policy"}


def test_the_trace_tells_every_end(observed):
    """Also of a request that is aborted while it waits, and of one that never decodes."""
    server = observed.server
    body = request(problem(6).prompt, "raas", 16, 12000, rid="retracted", **FOREVER)
    stream = events(server, body)
    while next(stream)["meta_info"]["evicted_tokens"] == 0:
        pass
    with paused(server, "retract"):
        post(server, "/abort_request", {"rid": "retracted"})
    *_, last = stream
    generate(server, problem(6).prompt, "raas", 16, tokens=1, rid="short")
    told: dict[str, list] = defaultdict(list)
    began = time.monotonic()
    while not told["short"] and time.monotonic() - began < 60:
        time.sleep(0.2)
        for received in list(observed.received):
            for text in received.batch.requests:
                if text.finished and text not in told[text.rid]:
                    told[text.rid].append(text)
    (retracted,), (short,) = told["retracted"], told["short"]
    assert (retracted.finished, short.finished) == ("abort", "length")
    ids = np.frombuffer(retracted.token_ids, TOKEN_DTYPE)[retracted.prompt_len :]
    assert ids.tolist() == last["output_ids"]
    assert retracted.logical_len == last["meta_info"]["logical_tokens"]
