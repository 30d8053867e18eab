"""What requests hold and give up, for `/metrics` and the log: from the host's bookkeeping alone.

Nothing here reads the device. A prompt that requests share counts once for each of them.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from raas_kernels import Policy
from raas_sglang.life.request import RequestState

POLICY_LABEL = "kv_policy"


class KVUsage(NamedTuple):
    """What the running requests of one policy hold, in tokens.

    Attributes:
        requests: Their number.
        logical: Tokens of their texts.
        resident: Slots that they hold.
        budget: Sum of their budgets; 0 for dense.
        budget_used: Generated tokens that are resident in those budgets.
    """

    requests: int = 0
    logical: int = 0
    resident: int = 0
    budget: int = 0
    budget_used: int = 0

    @property
    def evicted(self) -> int:
        """Slots that the same requests would hold besides if they were dense."""
        return self.logical - self.resident

    @property
    def budget_usage(self) -> float:
        """Share of the granted budgets that is in use, from 0 to 1."""
        return self.budget_used / self.budget if self.budget else 0.0

    def plus(self, other: "KVUsage") -> "KVUsage":
        """Sum of two usages."""
        return KVUsage(*(a + b for a, b in zip(self, other, strict=True)))


def usage_of(states: Iterable[RequestState]) -> dict[Policy, KVUsage]:
    """Adds up what requests hold, for every policy; those without requests are zero."""
    totals = {policy: [0] * len(KVUsage._fields) for policy in Policy}
    for state in states:
        total = totals[state.options.policy]
        total[0] += 1
        total[1] += state.logical_len
        total[2] += state.resident_len
        if state.is_bounded:
            budget = state.options.budget
            total[3] += budget
            total[4] += min(max(0, state.resident_len - state.prompt_len), budget)
    return {policy: KVUsage(*total) for policy, total in totals.items()}


def log_part(usages: Mapping[Policy, KVUsage]) -> str:
    """What the log line of a decode batch says."""
    total = KVUsage()
    for usage in usages.values():
        total = total.plus(usage)
    counts = [f"#{p.label}-req: {u.requests}" for p, u in usages.items() if u.requests]
    return ", ".join(
        [
            *counts,
            f"#logical token: {total.logical}",
            f"#resident token: {total.resident}",
            f"#evicted token: {total.evicted}",
            f"budget usage: {total.budget_usage:.2f}",
        ]
    )


_GAUGES: Mapping[str, tuple[str, Callable[[KVUsage], float]]] = {
    "sglang:kv_running_reqs": ("Running requests of a policy.", lambda u: u.requests),
    "sglang:kv_logical_tokens": ("Tokens of the running requests' texts.", lambda u: u.logical),
    "sglang:kv_resident_tokens": (
        "Slots that the running requests hold; a shared prompt counts for each.",
        lambda u: u.resident,
    ),
    "sglang:kv_evicted_tokens": (
        "Tokens that the running requests gave up: slots that they would hold besides if dense.",
        lambda u: u.evicted,
    ),
    "sglang:kv_budget_tokens": ("Sum of the running requests' budgets.", lambda u: u.budget),
    "sglang:kv_budget_usage": (
        "Resident generated tokens over the sum of the budgets.",
        lambda u: u.budget_usage,
    ),
}
_COUNTERS: Mapping[str, str] = {
    "sglang:kv_evictions_total": "Generated tokens given up since the start.",
    "sglang:kv_saved_reads_total": (
        "Tokens that decode attention did not read because they were given up, summed over steps: "
        "what dense requests would have read besides."
    ),
}
METRIC_NAMES = (*_GAUGES, *_COUNTERS)


class EvictionMetrics:
    """Our gauges and counters beside those of SGLang's scheduler.

    Args:
        labels: Labels of SGLang's own collector; a policy's name is added.
        running: Returns the running requests.
    """

    def __init__(
        self, labels: Mapping[str, str], running: Callable[[], Iterable[RequestState]]
    ) -> None:
        # Imported late: at import the client reads PROMETHEUS_MULTIPROC_DIR, which SGLang sets.
        from prometheus_client import Counter, Gauge

        self.running = running
        names = (*labels, POLICY_LABEL)
        gauges = {
            name: Gauge(name, text, names, multiprocess_mode="mostrecent")
            for name, (text, _) in _GAUGES.items()
        }
        counters = [Counter(name, text, names) for name, text in _COUNTERS.items()]
        own = {policy: {**labels, POLICY_LABEL: policy.label} for policy in Policy}
        self._gauges = {
            policy: [(gauges[name].labels(**own[policy]), _GAUGES[name][1]) for name in gauges]
            for policy in Policy
        }
        self._counters = {
            policy: [counter.labels(**own[policy]) for counter in counters] for policy in Policy
        }

    def log_stats(self) -> None:
        """Sets every gauge to what the running requests hold now."""
        for policy, usage in usage_of(self.running()).items():
            for gauge, value in self._gauges[policy]:
                gauge.set(value(usage))

    def count(self, states: Iterable[RequestState]) -> None:
        """Counts what requests have given up since they were counted last, to the token.

        Args:
            states: Requests of a decode batch whose results are in, those that finished included.
        """
        grown = {policy: [0, 0] for policy in Policy}
        for state in states:
            before, now = state.count()
            if now > before:
                totals = grown[state.options.policy]
                totals[0] += now - before
                # A step that gives up the n-th token reads n fewer than a dense one.
                totals[1] += (now * (now + 1) - before * (before + 1)) // 2
        for policy, totals in grown.items():
            for counter, total in zip(self._counters[policy], totals, strict=True):
                if total:
                    counter.inc(total)
