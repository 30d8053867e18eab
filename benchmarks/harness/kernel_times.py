"""What a profiler's trace says about the device: which kernels ran, how often and how long."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

# What occupies a device, in Chrome's trace format as PyTorch writes it.
ON_GPU = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
# Where there is none: operators, those that others call included.
ON_CPU = frozenset({"cpu_op"})


class Kernel(NamedTuple):
    """All runs of one kernel.

    Attributes:
        name: As the compiler calls it.
        calls: How often it ran.
        microseconds: How long in all.
    """

    name: str
    calls: int
    microseconds: float


class Trace(NamedTuple):
    """What a device did.

    Attributes:
        span: Microseconds from the first kernel's begin to the last one's end.
        busy: Microseconds in which at least one ran; the rest is gaps.
        kernels: Those that took the longest first.
    """

    span: float
    busy: float
    kernels: list[Kernel]


def read_trace(path: Path, categories: Iterable[str]) -> Trace:
    """Reads a trace, zipped or not.

    Raises:
        ValueError: nothing of these categories is in it.
    """
    content = path.read_bytes()
    text = gzip.decompress(content) if path.suffix == ".gz" else content
    events = json.loads(text)["traceEvents"]
    return summary([event for event in events if event.get("cat") in set(categories)], path)


def summary(events: list[dict[str, Any]], path: Path) -> Trace:
    """Adds up the events of a device.

    Args:
        events: With name, `ts` and `dur` in microseconds, in any order.
        path: Where they are from, for the message.

    Raises:
        ValueError: there are none.
    """
    if not events:
        raise ValueError(f"{path} must hold what the device did, got nothing; profile more steps")
    busy, end = 0.0, float("-inf")
    totals: dict[str, tuple[int, float]] = {}
    for event in sorted(events, key=lambda event: event["ts"]):
        begin, ends = event["ts"], event["ts"] + event["dur"]
        busy += max(0.0, ends - max(begin, end))
        end = max(end, ends)
        calls, spent = totals.get(event["name"], (0, 0.0))
        totals[event["name"]] = calls + 1, spent + event["dur"]
    span = end - min(event["ts"] for event in events)
    kernels = [Kernel(name, calls, spent) for name, (calls, spent) in totals.items()]
    return Trace(span, busy, sorted(kernels, key=lambda kernel: -kernel.microseconds))
