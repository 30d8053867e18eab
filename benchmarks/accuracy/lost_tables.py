"""Tables and picture of the attention that given up tokens would have had, from stored rows.

python -m accuracy.lost_tables --out ../docs/plots
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from stored import Row, distinct, newest, read
from table import markdown

# The head, as layer and query head, that fetches the operands' values: chosen by these rows, as the
# one in which what policies lose goes with the chains that they get right.
LOOK_UP = (2, 0)
LENGTH = "1200"  # of the chains that are shown over the budget and drawn
DRAWN_BUDGET = 288  # a quarter of them
PANEL_INCHES = (1.9, 1.5)
NAME = "attention-lost"


def over_budget() -> str:
    """For each task of `LENGTH`: what each policy loses over the budget."""
    rows = [row for row in lost_rows() if _length(row) == LENGTH]
    return "\n\n".join(
        _table([row for row in rows if _task(row) == task], f"{task}: lost, budget", _budget, _cell)
        for task in distinct(map(_task, rows))
    )


def by_regime() -> str:
    """For each other length and budget: what each policy loses in `LOOK_UP` in each regime."""
    rows = [row for row in lost_rows() if _length(row) != LENGTH]
    return "\n\n".join(
        _table(
            [row for row in rows if (_length(row), _budget(row)) == (length, budget)],
            f"{length} tokens, L = {budget:,}",
            lambda row: _task(row).partition(":")[0],
            lambda row: f"{_looked_up(row):.2f}",
        )
        for length, budget in sorted({(_length(row), _budget(row)) for row in rows})
    )


def lost_rows() -> list[Row]:
    """Of each task, method and budget the newest row."""
    rows = read("attention_lost")
    return list(newest(rows, lambda row: (_task(row), _method(row), _budget(row))).values())


def drawn_rows() -> list[Row]:
    """The rows that the picture shows."""
    rows = lost_rows()
    return [row for row in rows if _length(row) == LENGTH and _budget(row) == DRAWN_BUDGET]


def data(rows: list[Row]) -> str:
    """Returns all that the picture shows, as text; equal texts are equal pictures."""
    shown = [[_task(row), _method(row), row["over_half"]] for row in rows]
    return json.dumps(shown, separators=(",", ":"))


def draw(rows: list[Row], path: Path) -> None:
    """Draws layers x query heads, one row of panels for each task, one panel for each method."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": path.stem})
    from matplotlib import pyplot
    from matplotlib.colors import LogNorm

    tasks, methods = distinct(map(_task, rows)), distinct(map(_method, rows))
    size = PANEL_INCHES[0] * len(methods), PANEL_INCHES[1] * len(tasks) + 0.6
    figure, panels = pyplot.subplots(
        *(len(tasks), len(methods)),
        **{"figsize": size, "sharex": True, "sharey": True, "squeeze": False},
        layout="constrained",
    )
    shown = None
    for row in rows:
        panel = panels[tasks.index(_task(row))][methods.index(_method(row))]
        share = [[100 * value for value in layer] for layer in row["over_half"]]
        shown = panel.imshow(
            share, norm=LogNorm(0.05, 30, clip=True), cmap="magma_r", interpolation="none"
        )
        panel.set_title(_method(row).partition(":")[2].replace(",", "\n"), fontsize=8)
        corner = LOOK_UP[1] - 0.5, LOOK_UP[0] - 0.5
        panel.add_patch(pyplot.Rectangle(corner, 1, 1, fill=False, edgecolor="#1166bb"))
        panel.set(xticks=range(0, len(share[0]), 2), yticks=range(len(share)))
    for task, line in zip(tasks, panels, strict=True):
        line[0].set_ylabel(f"{task}\nlayer", fontsize=8)
    figure.supxlabel("query head", fontsize=8)
    figure.colorbar(shown, ax=panels, label="% of steps", aspect=30, pad=0.01)
    figure.savefig(path, format="svg", metadata={"Date": None, "Description": data(rows)})
    pyplot.close(figure)


def _table(
    rows: Sequence[Row],
    corner: str,
    column: Callable[[Row], str | int],
    cell: Callable[[Row], str],
) -> str:
    """Methods downwards, ``column`` across."""
    columns = distinct(map(column, rows))
    cells = {(_method(row), column(row)): cell(row) for row in rows}
    lines = [
        [f"`{method}`", *(cells.get((method, at), "") for at in columns)]
        for method in distinct(map(_method, rows))
    ]
    chains = " or ".join(map(str, sorted({row["repeats"] for row in rows})))
    return markdown([corner, *map(str, columns)], lines) + f"\n\nn = {chains}."


def _cell(row: Row) -> str:
    """Mass and steps of all heads, and steps of the head that looks values up, in per cent."""
    mass, half = (100 * fmean(map(fmean, row[name])) for name in ("mass", "over_half"))
    return f"{mass:.1f}, {half:.1f}, {_looked_up(row):.2f}"


def _looked_up(row: Row) -> float:
    """Steps in which the head that looks values up lost more than half, in per cent."""
    layer, head = LOOK_UP
    return 100 * float(row["over_half"][layer][head])


def _task(row: Row) -> str:
    return str(row["config"]["task"])


def _length(row: Row) -> str:
    return _task(row).partition(":")[2]


def _method(row: Row) -> str:
    return str(row["config"]["method"])


def _budget(row: Row) -> int:
    return int(row["config"]["budget"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the picture")
    draw(drawn_rows(), parser.parse_args().out / f"{NAME}.svg")
