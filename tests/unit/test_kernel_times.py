"""A trace is added up as the device ran it: overlaps once, gaps not at all."""

import gzip
import json

import pytest

from benchmarks.harness.kernel_times import ON_GPU, Kernel, read_trace


def event(name, begin, length, category="kernel"):
    return {"name": name, "cat": category, "ts": begin, "dur": length}


def written(path, *events):
    # Events without a category are the trace's own notes.
    text = json.dumps({"traceEvents": [{"name": "process_name"}, *events]})
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["a.trace.json", "a.trace.json.gz"])
def test_kernels_are_added_up_by_name_and_overlaps_count_once(tmp_path, name):
    events = [
        event("store", 20, 2.0),
        event("attention", 0, 10.0),
        event("attention", 30, 12.0),
        event("scores", 5, 10.0),
        event("copy", 41, 2.0, "gpu_memcpy"),
        event("aten::mm", 0, 500.0, "cpu_op"),
    ]
    trace = read_trace(written(tmp_path / name, *events), ON_GPU)
    assert trace.span == 43.0
    assert trace.busy == 15.0 + 2.0 + 13.0
    assert trace.kernels[:2] == [Kernel("attention", 2, 22.0), Kernel("scores", 1, 10.0)]
    assert {kernel.name for kernel in trace.kernels[2:]} == {"store", "copy"}


def test_a_trace_without_the_device_is_refused(tmp_path):
    path = written(tmp_path / "a.trace.json", event("aten::mm", 0, 5.0, "cpu_op"))
    with pytest.raises(ValueError, match="what the device did"):
        read_trace(path, ON_GPU)
