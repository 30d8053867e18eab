"""Every answer as one JSON line, so that a run can be read, resumed and graded again."""

import argparse
import gzip
import json
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.accuracy.grid import Cell
from benchmarks.harness.cli import quantised_cache
from benchmarks.harness.rows import commit_of_checkout, device, own_command, versions
from reasoner import REASONER

Key = tuple[str, str, int | None]  # task, method, budget
# What all samples of a cell must share; an older file does not say all of it.
SETTINGS = ("model", "dtype", "first_seed", "greedy", "max_tokens")
Run = dict[str, Any]
Sample = dict[str, Any]
_TEXTS = ("prompt", "text")


def add_sample_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say where samples go and what is kept of them."""
    parser.add_argument("--texts", choices=("all", "wrong", "none"), default="all")
    add_file_flags(parser)


def add_file_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say where lines go and what they are of."""
    parser.add_argument("--commit", help="commit that is measured, where git is not at hand")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines to append to")


def about_run(args: argparse.Namespace) -> dict[str, Any]:
    """What is true of all samples of a run; a model is another one with a quantised cache."""
    model = args.model_path.name if args.model_path != REASONER else "reasoner"
    is_served = "server_flags" in args
    flags = args.server_flags if is_served else f"--kv-cache-dtype {args.kv_cache_dtype}"
    cache = quantised_cache(shlex.split(flags))
    return {
        "command": shlex.join(["python", *own_command()]),
        "commit": args.commit or commit_of_checkout(),
        **{name: vars(args)[name] for name in SETTINGS if name != "model" and name in args},
        "model": f"{model}, {cache} KV cache" if cache else model,
    }


class SampleFile:
    """Appends samples to a file and knows which are there.

    Args:
        path: File of JSON lines; made if it is not there. A last line that an interruption cut off
            is dropped.
        texts: Whose prompt and text are kept: ``all``, those that are ``wrong``, or ``none``. The
            reasoner's prompts, and its right chains, follow from their seeds.
        about: What is true of the whole run; written once, before the first sample.

    Raises:
        ValueError: the file would be a compressed one, to which nothing can be appended.
    """

    def __init__(self, path: Path, texts: str, about: dict[str, Any]) -> None:
        if path.suffix == ".gz":
            raise ValueError(
                f"--out must be a file of plain JSON lines, got {path}; compress later"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_broken_end(path)
        self._texts = texts
        self.done: dict[Key, set[int]] = defaultdict(set)
        self._others: dict[Key, str] = {}
        for run, sample in read_with_runs(path):
            self.done[key_of(sample)].add(sample["index"])
            if differing := _differing(run, about):
                self._others[key_of(sample)] = differing
        self._file = path.open("a")
        self._append({"run": {**about, **device(), "versions": versions()}})

    def missing(self, key: Key, wanted: Iterable[int]) -> list[int]:
        """Problems of a cell that are wanted and not there yet.

        Raises:
            ValueError: those that are there were answered with other settings.
        """
        if key in self._others:
            raise ValueError(
                f"samples of {key} must have the settings of those that are in the file, got "
                f"{self._others[key]}; name another --out"
            )
        return [index for index in wanted if index not in self.done[key]]

    def write(self, sample: dict[str, Any]) -> None:
        """Stores one sample at once."""
        if self._texts == "none" or (self._texts == "wrong" and sample["right"]):
            sample = {name: sample[name] for name in sample if name not in _TEXTS}
        self._append(sample)
        self.done[key_of(sample)].add(sample["index"])

    def close(self) -> None:
        """Ends the file."""
        self._file.close()

    def _append(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def sample_of(
    cell: Cell, index: int, text: str, tokens: int, finish: str, report: dict[str, Any]
) -> dict[str, Any]:
    """Returns the sample of a text; ``report`` says what the cache held, as `meta_info` does."""
    task, method, budget = cell.key
    return {
        **{"task": task, "method": method, "budget": budget, "index": index},
        **cell.task.verdict(index, text)._asdict(),
        **{"tokens": tokens, "finish": finish},
        **{
            f"{name}_tokens": report[f"{name}_tokens"]
            for name in ("logical", "resident", "evicted")
        },
        **{"prompt": cell.task.prompt(index), "text": text},
    }


def key_of(sample: dict[str, Any]) -> Key:
    """What a sample is filed under."""
    return sample["task"], sample["method"], sample["budget"]


def read_samples(path: Path) -> Iterator[dict[str, Any]]:
    """Reads the samples of a file in order."""
    return (line for line in _lines(path) if "run" not in line)


def read_with_runs(path: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Reads the samples of a file in order, each with what is said about the run that wrote it."""
    run: dict[str, Any] = {}
    for line in _lines(path):
        if "run" in line:
            run = line["run"]
        else:
            yield run, line


def read_cells(path: Path) -> tuple[dict[Key, dict[int, Sample]], dict[Key, Run]]:
    """Reads the samples of a file, each cell's by problem, and the run that wrote to it last."""
    cells: dict[Key, dict[int, Sample]] = {}
    runs: dict[Key, Run] = {}
    for run, sample in read_with_runs(path):
        key = key_of(sample)
        cells.setdefault(key, {})[sample["index"]] = sample
        runs[key] = run
    return cells, runs


def _differing(run: Run, about: Run) -> str:
    """What a run says otherwise than another, as far as both say it; empty if nothing."""
    names = [name for name in SETTINGS if name in run and name in about]
    return ", ".join(
        f"{name} {about[name]} after {run[name]}" for name in names if run[name] != about[name]
    )


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            yield from map(json.loads, file)


def _drop_broken_end(path: Path) -> None:
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
