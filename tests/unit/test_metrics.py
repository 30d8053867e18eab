"""Gauges, counters and the log part, from request states alone."""

import prometheus_client
import pytest

from raas_kernels import Policy
from raas_sglang.life.options import RequestOptions
from raas_sglang.life.request import RequestState
from raas_sglang.metrics import METRIC_NAMES, EvictionMetrics, log_part, usage_of

LABELS = {"model_name": "m", "tp_rank": "0"}


def state(policy, prompt, generated, budget=64):
    evicts = policy is not Policy.DENSE
    resident = prompt + (min(generated, budget) if evicts else generated)
    options = RequestOptions(policy, budget, evicts)
    state = RequestState(options, prompt)
    state.logical_len, state.resident_len = prompt + generated, resident
    return state


@pytest.fixture
def registry(monkeypatch):
    fresh = prometheus_client.CollectorRegistry()
    for name in ("Gauge", "Counter"):
        kind = getattr(prometheus_client, name)

        def registered(*args, kind=kind, **kwargs):
            return kind(*args, registry=fresh, **kwargs)

        monkeypatch.setattr(prometheus_client, name, registered)
    return fresh


def value(registry, name, policy):
    return registry.get_sample_value(f"sglang:kv_{name}", {**LABELS, "kv_policy": policy})


def test_gauges_say_what_the_running_requests_hold(registry):
    running = [
        state(Policy.RAAS, 100, 200),
        state(Policy.RAAS, 100, 32, budget=128),
        state(Policy.WINDOW, 10, 65),
        state(Policy.DENSE, 50, 500),
    ]
    metrics = EvictionMetrics(LABELS, lambda: running)
    metrics.log_stats()
    assert value(registry, "running_reqs", "raas") == 2
    assert value(registry, "logical_tokens", "raas") == 432
    assert value(registry, "resident_tokens", "raas") == 164 + 132
    assert value(registry, "evicted_tokens", "raas") == 136
    assert value(registry, "budget_tokens", "raas") == 192
    assert value(registry, "budget_usage", "raas") == pytest.approx((64 + 32) / 192)
    assert value(registry, "evicted_tokens", "window") == 1
    assert value(registry, "evicted_tokens", "dense") == 0
    assert value(registry, "budget_tokens", "dense") == 0
    assert value(registry, "resident_tokens", "dense") == 550
    running.clear()
    metrics.log_stats()
    assert value(registry, "running_reqs", "raas") == 0
    assert value(registry, "resident_tokens", "dense") == 0


def test_counters_count_every_token_once_however_often_they_look(registry):
    """Against the sum over steps, for looks at every step and at few."""
    metrics = EvictionMetrics(LABELS, list)
    often, seldom = state(Policy.RAAS, 10, 60), state(Policy.H2O, 10, 60)
    saved = 0
    for step in range(61, 201):
        for each in (often, seldom):
            each.logical_len, each.resident_len = 10 + step, 10 + min(step, 64)
        saved += max(0, step - 64)
        metrics.count([often])
        if step % 45 == 0 or step == 200:
            metrics.count([seldom])
    for policy in ("raas", "h2o"):
        assert value(registry, "evictions_total", policy) == 200 - 64
        assert value(registry, "saved_reads_total", policy) == saved
    assert value(registry, "evictions_total", "dense") == 0


def test_a_retraction_counts_nothing_twice(registry):
    """While its prompt is prefilled again in chunks, a request has given up nothing yet."""
    metrics = EvictionMetrics(LABELS, list)
    request = state(Policy.RAAS, 10, 100)
    metrics.count([request])
    request.retract(110)
    for resident_len in (5, 74):
        request.prefilled(resident_len)
        metrics.count([request])
    request.logical_len = 111
    metrics.count([request])
    assert value(registry, "evictions_total", "raas") == 37


def test_every_name_is_one_that_prometheus_takes(registry):
    EvictionMetrics(LABELS, list)
    exposed = {sample.name for family in registry.collect() for sample in family.samples}
    assert set(METRIC_NAMES) <= exposed


def test_the_log_part_names_the_policies_that_run():
    usages = usage_of([state(Policy.RAAS, 100, 200), state(Policy.DENSE, 50, 5)])
    assert log_part(usages) == (
        "#dense-req: 1, #raas-req: 1, #logical token: 355, #resident token: 219, "
        "#evicted token: 136, budget usage: 1.00"
    )
    assert log_part(usage_of([])).startswith("#logical token: 0")
