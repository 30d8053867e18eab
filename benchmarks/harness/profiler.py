"""Some steps of a running server as SGLang's own profiler sees them, kernel by kernel."""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness.arms import Arm
from benchmarks.harness.cli import say
from benchmarks.harness.deadline import wait_until
from benchmarks.harness.kernel_times import ON_CPU, ON_GPU, Trace, read_trace
from benchmarks.harness.rows import RowFile
from raas_sglang.cpu import has_driver

POLL_S = 0.2
NAME_WIDTH = 90


def record_steps(arm: Arm, steps: int, deadline: float) -> Trace:
    """Records so many steps from now on.

    Args:
        arm: A server with requests that go on for as long as it takes; at first the profiler needs
            seconds to begin.
        steps: Forward passes, prefills among them.
        deadline: `time.monotonic` at which to give up.

    Raises:
        OutOfTimeError: the deadline has passed.
        RuntimeError: the profiler failed.
    """
    mark = arm.log_size()
    with tempfile.TemporaryDirectory() as folder:
        activity = "GPU" if has_driver() else "CPU"
        chosen = {"num_steps": steps, "activities": [activity], "with_stack": False}
        arm.post("/start_profile", output_dir=folder, **chosen)
        wait_until(lambda: "Profiling done" in arm.server.log()[mark:], POLL_S, deadline)
        # Of several ranks the first: they do the same.
        path = min(Path(folder).rglob("*.trace.json*"))
        return read_trace(path, ON_GPU if has_driver() else ON_CPU)


def write_steps(
    trace: Trace, arm: Arm, label: str, config: dict[str, Any], rows: RowFile, count: int = 30
) -> None:
    """Stores and prints what was recorded.

    Args:
        trace: The recorded steps.
        arm: Whose they are.
        label: What to call them when they are printed.
        config: What was chosen.
        rows: Where results go.
        count: Kernels that are named, those that took the longest.
    """
    longest = [
        {"kernel": kernel.name[:NAME_WIDTH], "calls": kernel.calls, "us": kernel.microseconds}
        for kernel in trace.kernels[:count]
    ]
    about = {"span_us": trace.span, "kernels": longest, "flags": arm.flags}
    rows.write("device time of the recorded steps", [trace.busy], "us", config, **about)
    say(f"{label}: busy {trace.busy:.0f} us of {trace.span:.0f} us")
    for kernel in longest:
        each = kernel["us"] / kernel["calls"]
        say(f"{kernel['us']:12.1f} us {kernel['calls']:6d} x {each:9.2f}  {kernel['kernel']}")
