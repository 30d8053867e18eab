"""Turns samples of given answers into rows, one for each cell.

    python -m benchmarks.accuracy.study.losses SAMPLES... --out ROWS

What the run was that wrote a cell last stands before its rows.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.accuracy.samples import Run, read_cells
from benchmarks.accuracy.significance import ratio
from benchmarks.accuracy.summary import Row, write_rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("samples", type=Path, nargs="+", help="what `forced` wrote, gzip or not")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, written anew")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w") as file:
        for path in args.samples:
            write_rows(file, summarise(path))
    return 0


def summarise(path: Path) -> list[tuple[Run, Row]]:
    """Returns a row for each cell of a file of samples, behind the run that wrote to it last.

    A row has the mean loss of a token in nats, how much ``more`` that is than with a dense cache,
    with its standard error over texts, and the share of first choices that are the ``same``.
    """
    cells, runs = read_cells(path)
    rows = []
    for (task, method, budget), found in cells.items():
        dense = cells[task, "dense", budget]
        tokens = [one["tokens"] for one in found.values()]
        more = [one["loss"] - dense[index]["loss"] for index, one in found.items()]
        excess, error = ratio(more, tokens)
        row = {
            **{"task": task, "method": method, "budget": budget},
            **{"n": len(found), "tokens": sum(tokens)},
            "loss": round(ratio([one["loss"] for one in found.values()], tokens)[0], 4),
            **{"more": round(excess, 4), "error": round(error, 4)},
            "same": round(ratio([one["same"] for one in found.values()], tokens)[0], 4),
        }
        rows.append((runs[task, method, budget], row))
    return rows


def table(rows: Iterable[Row]) -> list[str]:
    """Returns lines of Markdown."""
    lines = [
        "| texts, L | method | n | tokens | loss | more than dense | the same choice, % |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['task']}, {row['budget']} | {row['method']} | {row['n']} | {row['tokens']} | "
        f"{row['loss']:.4f} | {row['more']:+.4f} ± {row['error']:.4f} | {100 * row['same']:.1f} |"
        for row in rows
    ]
    return lines


if __name__ == "__main__":
    sys.exit(main())
