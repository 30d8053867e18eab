"""The accuracy harness and a running server: generated problems and a data set alike."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.accuracy.samples import key_of, read_samples
from reasoner.problem import make_problem

ROOT = Path(__file__).parents[2]
PROBLEMS = 2


def collect(server, tmp_path, *more):
    """Runs the command line and returns what it printed."""
    asked = [make_problem("uniform", 6, seed, seed) for seed in range(PROBLEMS)]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": p.prompt, "answer": p.answer}) for p in asked))
    command = [
        *(sys.executable, "-m", "benchmarks.accuracy.run", "--url", server.url),
        *("--tasks", "milestone:150", f"aime24:{data}", "--budgets", "32"),
        *("--n", str(PROBLEMS), "--commit", "tested", "--out", str(tmp_path / "samples.jsonl")),
        *more,
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_samples_are_collected_and_a_second_run_adds_what_is_missing(server, tmp_path):
    said = collect(server, tmp_path, "--methods", "dense", "raas")
    assert "8 samples to collect in 4 cells" in said
    samples = list(read_samples(tmp_path / "samples.jsonl"))
    by_cell = {key_of(sample): [] for sample in samples}
    for sample in samples:
        by_cell[key_of(sample)].append(sample)
    assert [sorted(s["index"] for s in group) for group in by_cell.values()] == [[0, 1]] * 4
    dense = by_cell["milestone:150", "dense", None]
    assert all(one["right"] and one["evicted_tokens"] == 0 for one in dense)
    assert dense[0]["prompt"].startswith("program v")
    raas = by_cell["milestone:150", "raas", 32]
    assert all(one["evicted_tokens"] > 0 and one["finish"] == "stop" for one in raas)
    (data,) = (group for key, group in by_cell.items() if key[:2] == ("aime24", "dense"))
    assert all(one["right"] and one["answered"] for one in data)

    said = collect(server, tmp_path, "--methods", "dense", "raas", "window")
    assert "4 samples to collect in 6 cells" in said
    assert len(list(read_samples(tmp_path / "samples.jsonl"))) == 12
