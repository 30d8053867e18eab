"""Draws accuracy over budget: ``python -m accuracy.plot --out ../docs/plots``, from stored rows.

One picture for each length, one column for each regime, one line for each method: what is solved,
how many outputs have no answer, and how long they are. The last two are not known of chains that
were asked until they were wrong. A picture carries the numbers that it shows, so that a test can
hold it to the rows.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from accuracy.comparison import by_length, share, unanswered_share
from accuracy.engine_tables import engine_rows
from accuracy.summary import Row, read_rows

Measure = Callable[[Row], float | None]
# What is drawn, with its name and colour; other methods stand in the tables alone.
METHODS = {
    "dense": ("dense", "#888888"),
    "raas": ("raas", "#bb1133"),
    "raas:recency-floor=96": ("raas, floor of 96", "#ee8899"),
    "raas:stamp-rule=paper": ("the paper's rule", "#1166bb"),
    "window": ("window", "#bb8833"),
    "window:eviction-page-size=16": ("window, pages of 16", "#ddbb77"),
    "random": ("random", "#55aa55"),
    "h2o:score=exact": ("h2o, pages of 1", "#553377"),
    "h2o:eviction-page-size=4,score=exact": ("h2o, pages of 4", "#aa88cc"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=Path, help="the repository's by default")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    args = parser.parse_args()
    found = read_rows(args.rows) if args.rows else engine_rows()
    for name, rows in pictures(found).items():
        draw(rows, args.out / f"{name}.svg")
        print(args.out / f"{name}.svg")


def pictures(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Returns the rows of each picture by its name, of each cell the last."""
    chosen = [row for row in rows if row["method"] in METHODS]
    return {
        f"accuracy-{length}": [row for group in regimes.values() for row in group.values()]
        for length, regimes in by_length(chosen).items()
    }


def data(rows: Sequence[Row]) -> str:
    """Returns all that a picture shows, as text; equal texts are equal pictures."""
    names = ("task", "method", "budget", "n", "right", "unanswered", "tokens_mean")
    shown = [[row[name] for name in names] for row in rows]
    return json.dumps(shown, separators=(",", ":"))


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draws the tasks of one length, one column each."""
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
        top.set(title=task, ylim=(-3, 103))
        bottom.set_xlabel("budget L, tokens")
    handles = {h.get_label(): h for p in panels[0] for h in p.get_legend_handles_labels()[0]}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    figure.set_layout_engine("constrained")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None, "Description": data(rows)})
    pyplot.close(figure)


def _fill(panel, rows: Sequence[Row], measure: Measure) -> None:
    """Draws one measure of one task."""
    for method, (name, colour) in METHODS.items():
        found = [row for row in rows if row["method"] == method and measure(row) is not None]
        if not found:
            continue
        if method == "dense":
            panel.axhline(measure(found[-1]), color=colour, linestyle="--", label=name)
            continue
        found.sort(key=lambda row: row["budget"])
        budgets = [row["budget"] for row in found]
        values = [measure(row) for row in found]
        panel.plot(budgets, values, "-o", color=colour, label=name, markersize=3)
        if measure is share:
            low, high = ([100 * row["wilson95"][end] for row in found] for end in (0, 1))
            panel.fill_between(budgets, low, high, color=colour, alpha=0.15, linewidth=0)
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.grid(alpha=0.3)


def _tokens(row: Row) -> float | None:
    return row["tokens_mean"]


MEASURES: dict[str, Measure] = {
    "whole chain right, %": share,
    "without an answer, %": unanswered_share,
    "output, tokens": _tokens,
}


if __name__ == "__main__":
    main()
