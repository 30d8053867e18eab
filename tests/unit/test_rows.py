"""Stored results say what was measured, how, on what, and how far it scattered."""

import json
import statistics

import pytest

from benchmarks.harness import rows
from benchmarks.harness.rows import RowFile
from raas_sglang import SUPPORTED_SGLANG


def test_a_row_says_what_a_reader_needs(tmp_path):
    path = tmp_path / "results" / "rows.jsonl"
    command = ["-m", "benchmarks.serving.decode", "--out", "a file"]
    file = RowFile(path, seed=7, commit="abc123", command=command)
    returned = file.write("latency", [3.0, 1.0, 2.0], "ms", {"arm": "raas"}, resident_tokens=5)
    (line,) = path.read_text().splitlines()
    row = json.loads(line)
    assert row == returned
    assert (row["result"], row["value"], row["unit"]) == ("latency", 2.0, "ms")
    assert (row["spread"], row["repeats"], row["values"]) == ([1.0, 3.0], 3, [3.0, 1.0, 2.0])
    assert row["config"] == {"arm": "raas"}
    assert row["resident_tokens"] == 5
    assert row["command"] == "python -m benchmarks.serving.decode --out 'a file'"
    assert (row["commit"], row["seed"]) == ("abc123", 7)
    assert row["versions"]["python"]
    assert row["versions"]["sglang"] == SUPPORTED_SGLANG
    assert {"gpu", "driver", "machine"} <= row.keys()


def test_each_row_is_on_disk_at_once_and_earlier_ones_stay(tmp_path):
    path = tmp_path / "rows.jsonl"
    for number in range(3):
        RowFile(path, seed=number, commit="c").write("count", [number], "tokens", {})
        seeds = [json.loads(line)["seed"] for line in path.read_text().splitlines()]
        assert seeds == list(range(number + 1))


def test_the_value_is_the_median_of_an_even_number_too(tmp_path):
    values = [4.0, 1.0, 2.0, 8.0]
    row = RowFile(tmp_path / "rows.jsonl", seed=0, commit="c").write("time", values, "s", {})
    assert row["value"] == statistics.median(values) == 3.0


def test_a_result_without_values_is_refused(tmp_path):
    file = RowFile(tmp_path / "rows.jsonl", seed=0, commit="c")
    with pytest.raises(ValueError, match="at least one value"):
        file.write("latency", [], "ms", {})
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize("path", [None, "no git here"])
def test_an_unknown_commit_is_refused(tmp_path, monkeypatch, path):
    monkeypatch.setattr(rows, "__file__", str(tmp_path / "rows.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    if path:
        monkeypatch.setenv("PATH", path)
    with pytest.raises(RuntimeError, match="--commit"):
        RowFile(tmp_path / "rows.jsonl", seed=0)


def test_the_commit_of_a_checkout_is_found(tmp_path):
    row = RowFile(tmp_path / "rows.jsonl", seed=0).write("count", [1], "tokens", {})
    assert len(row["commit"].removesuffix("-dirty")) >= 7


def test_gpu_and_driver_come_from_nvidia_smi(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "NVIDIA H100 80GB HBM3, 580.1"\necho "another, 580.1"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert rows.device()["gpu"] == "NVIDIA H100 80GB HBM3"
    assert rows.device()["driver"] == "580.1"
    tool.unlink()
    assert rows.device()["gpu"] is None
