"""A timed kernel becomes a row as any other, and its table says what the row says."""

import json

import pytest

from benchmarks.harness.rows import RowFile
from benchmarks.ops.timing import SHAPES, Case, measure, print_row
from benchmarks.report import ops, store


def test_a_kernel_is_held_against_the_larger_bandwidth(tmp_path, monkeypatch, capsys):
    rows = RowFile(tmp_path / "ops.jsonl", seed=1, commit="c1")
    case = Case("score_pages", lambda: None, bytes_moved=4_000_000)
    config = {"shape": "7B", "budget": 1024, "batch": 64, **SHAPES["7B"]._asdict()}
    bandwidths = {"copy_gb_s": 2000, "read_gb_s": 4000}
    # The median: 4 MB in 2 us, so 2 TB/s.
    row = measure(case, lambda run: [1.0, 4.0, 2.0], bandwidths, rows, config)
    assert (row["result"], row["value"], row["spread"]) == ("score_pages", 2.0, [1.0, 4.0])
    assert row["share_of_bandwidth"] == pytest.approx(0.5)
    assert row["versions"]["torch"]
    print_row(row)
    assert capsys.readouterr().out.split()[-2:] == ["50.0", "%"]
    monkeypatch.setattr(store, "RESULTS", tmp_path)
    assert "| `score_pages` | 2.00 (50%) |" in ops.ops()


def test_stored_kernels_have_the_form_of_all_rows():
    lines = [
        line for path in store.RESULTS.rglob("ops.jsonl") for line in path.read_text().splitlines()
    ]
    assert lines
    for line in lines:
        row = json.loads(line)
        assert {"result", "value", "unit", "spread", "repeats", "config", "command"} <= row.keys()
        assert {"commit", "gpu", "driver", "versions", "seed"} <= row.keys()
