"""Draws accuracy over budget: ``python -m accuracy.plot --out ../docs/plots``, from stored rows.

One picture of real questions and one of the reasoner's, a column for each task, a line for each
method: what is right, how many outputs have no answer, and how long they are. The last two are not
known of chains that were asked until they were wrong. A picture carries the numbers that it shows,
so that a test can hold it to the rows.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from accuracy.comparison import by_task, is_real, share, stored_rows
from accuracy.summary import Row, read_rows

Measure = Callable[[Row], float | None]
COLOURS = {
    "dense": "#888888",
    "raas": "#bb1133",
    "raas-paper": "#1166bb",
    "window": "#bb8833",
    "random": "#55aa55",
    "h2o": "#553377",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=Path, help="the repository's by default")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    args = parser.parse_args()
    found = read_rows(args.rows) if args.rows else stored_rows()
    for name, rows in pictures(found).items():
        draw(rows, args.out / f"{name}.svg")
        print(args.out / f"{name}.svg")


def pictures(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Returns the rows of each picture by its name, of each cell the last."""
    found = {
        "accuracy-real": [row for row in rows if is_real(row)],
        "accuracy-reasoner": [row for row in rows if not is_real(row)],
    }
    latest = {
        name: [row for group in by_task(chosen).values() for row in group.values()]
        for name, chosen in found.items()
    }
    return {name: chosen for name, chosen in latest.items() if chosen}


def data(rows: Sequence[Row]) -> str:
    """Returns all that a picture shows, as text; equal texts are equal pictures."""
    names = ("task", "method", "budget", "n", "right", "answers", "unanswered", "tokens_mean")
    shown = [[row[name] for name in names] for row in rows]
    return json.dumps(shown, separators=(",", ":"))


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draws tasks, one column each."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": path.stem})
    from matplotlib import pyplot

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, panels = pyplot.subplots(
        *(len(MEASURES), len(tasks)),
        figsize=(3.2 * len(tasks), 2.6 * len(MEASURES)),
        sharey="row",
        squeeze=False,
    )
    for across, (title, measure) in zip(panels, MEASURES.items(), strict=True):
        for panel, task in zip(across, tasks, strict=True):
            _fill(panel, [row for row in rows if row["task"] == task], measure)
        across[0].set_ylabel(title)
    for top, bottom, task in zip(panels[0], panels[-1], tasks, strict=True):
        top.set(title=task)
        top.set_ylim(bottom=0)
        bottom.set_xlabel("budget L, tokens")
    handles = {h.get_label(): h for p in panels[0] for h in p.get_legend_handles_labels()[0]}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    figure.set_layout_engine("constrained")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None, "Description": data(rows)})
    pyplot.close(figure)


def _fill(panel, rows: Sequence[Row], measure: Measure) -> None:
    """Draws one measure of one task."""
    for method, colour in COLOURS.items():
        found = [row for row in rows if row["method"] == method and measure(row) is not None]
        if not found:
            continue
        if method == "dense":
            panel.axhline(measure(found[-1]), color=colour, linestyle="--", label=method)
            continue
        found.sort(key=lambda row: row["budget"])
        budgets = [row["budget"] for row in found]
        values = [measure(row) for row in found]
        panel.plot(budgets, values, "-o", color=colour, label=method, markersize=3)
        if measure is share:
            low, high = ([100 * row["wilson95"][end] for row in found] for end in (0, 1))
            panel.fill_between(budgets, low, high, color=colour, alpha=0.15, linewidth=0)
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.grid(alpha=0.3)


def _unanswered(row: Row) -> float | None:
    return (
        None
        if row["unanswered"] is None
        else 100 * float(row["unanswered"]) / float(row["answers"])
    )


def _tokens(row: Row) -> float | None:
    return row["tokens_mean"]


MEASURES: dict[str, Measure] = {
    "right, %": share,
    "without an answer, %": _unanswered,
    "output, tokens": _tokens,
}


if __name__ == "__main__":
    main()
