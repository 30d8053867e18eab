"""Turns samples into rows, one for each cell.

    python -m benchmarks.accuracy.summary SAMPLES... --out ROWS

A row holds which problems were solved as hexadecimal bits, so that any two cells can be compared on
the same problems without the samples. What a run was stands before its rows; of several that wrote
to one cell, the last one.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any, TextIO

from benchmarks.accuracy.samples import Key, Run, read_cells
from benchmarks.accuracy.significance import wilson

Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("samples", type=Path, nargs="+", help="files of samples, gzip or not")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, written anew")
    parser.add_argument("--least", type=int, default=1, help="leaves out cells with fewer samples")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w") as file:
        for path in args.samples:
            rows = summarise(path, args.least)
            write_rows(file, rows)
            print(f"{path}: {len(rows)} cells, {sum(row['n'] for _, row in rows)} samples")
    return 0


def summarise(path: Path, least: int) -> list[tuple[Run, Row]]:
    """Returns a row for each cell of a file of samples, behind the run that wrote to it last."""
    cells, runs = read_cells(path)
    return [
        (runs[key], cell_row(key, found)) for key, found in cells.items() if len(found) >= least
    ]


def write_rows(file: TextIO, rows: Iterable[tuple[Run, Row]]) -> None:
    """Writes rows as JSON lines, behind what their run was."""
    for run, of_run in groupby(rows, itemgetter(0)):
        lines = [{"run": run}, *(row for _, row in of_run)]
        file.writelines(json.dumps(line) + "\n" for line in lines)


def read_rows(path: Path) -> list[Row]:
    """Returns stored rows, each with its ``run``; none if there is no such file."""
    rows: list[Row] = []
    run: dict[str, Any] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        row = json.loads(line)
        if "run" in row:
            run = row["run"]
        else:
            rows.append({**row, "run": run})
    return rows


def cell_row(key: Key, found: dict[int, dict[str, Any]]) -> Row:
    """Returns the numbers of one cell.

    Args:
        key: Task, method, budget.
        found: Its samples by problem.
    """
    task, method, budget = key
    samples = [found[index] for index in sorted(found)]
    flags = _flags(found)
    right = sum(flags.values())
    return {
        "task": task,
        "method": method,
        "budget": budget,
        "n": len(flags),
        "right": right,
        "answers": len(samples),
        "wilson95": [round(x, 4) for x in wilson(right, len(flags))],
        **_endings(samples),
        "asked": to_hex(place in flags for place in range(max(flags) + 1)),
        "solved": to_hex(flags.get(place, False) for place in range(max(flags) + 1)),
    }


def _flags(found: dict[int, dict[str, Any]]) -> dict[int, bool]:
    """Whether each question is answered right; a message may hold several of them."""
    flags: dict[int, bool] = {}
    for index, sample in found.items():
        rights = sample.get("rights") or [sample["right"]]
        flags.update({index * len(rights) + place: right for place, right in enumerate(rights)})
    return flags


_MEANS = ("tokens", "logical_tokens", "resident_tokens", "evicted_tokens")


def _endings(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "answer_right": sum(sample["answer_right"] for sample in samples),
        "unanswered": sum(not sample["answered"] for sample in samples),
        "unfinished": sum(sample["finish"] != "stop" for sample in samples),
        **{f"{name}_mean": _mean(samples, name) for name in _MEANS},
    }


def _mean(samples: list[dict[str, Any]], name: str) -> float:
    return round(fmean(sample[name] for sample in samples), 1)


def to_hex(bits: Iterable[bool]) -> str:
    """Packs bits, the first one lowest."""
    return f"{sum(bool(bit) << place for place, bit in enumerate(bits)):x}"


def problems(row: Row, name: str) -> set[int]:
    """Indices of the problems that were ``asked`` or ``solved``."""
    bits = int(row[name], 16)
    return {place for place in range(bits.bit_length()) if bits >> place & 1}


if __name__ == "__main__":
    sys.exit(main())
