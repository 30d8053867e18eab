"""The plots of accuracy over the budget: a column for each task, a line for each method.

What is right, how many outputs have no answer, and how long they are.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.accuracy.summary import Row
from benchmarks.report.accuracy import by_task, share, stored_rows
from benchmarks.report.drawing import COLOURS, drawing

_SHOWN = ("task", "method", "budget", "n", "right", "answers", "unanswered", "tokens_mean")


class AccuracyPlot(NamedTuple):
    """What is drawn: rows, of each cell the last."""

    lines: list[Row]

    def data(self) -> str:
        """All that the drawing shows, as text; equal texts are equal plots."""
        shown = [[row[name] for name in _SHOWN] for row in self.lines]
        return json.dumps(shown, separators=(",", ":"))

    def draw(self, path: Path) -> None:
        """Draws it; see `drawing`."""
        tasks = list(dict.fromkeys(row["task"] for row in self.lines))
        shape = len(MEASURES), len(tasks)
        size = 3.2 * len(tasks), 2.6 * len(MEASURES)
        with drawing(path, self.data(), *shape, figsize=size, sharey="row") as (figure, panels):
            for across, (title, measure) in zip(panels, MEASURES.items(), strict=True):
                for panel, task in zip(across, tasks, strict=True):
                    _fill(panel, [row for row in self.lines if row["task"] == task], measure)
                across[0].set_ylabel(title)
            for top, bottom, task in zip(panels[0], panels[-1], tasks, strict=True):
                top.set(title=task)
                top.set_ylim(bottom=0)
                bottom.set_xlabel("budget L, tokens")
            handles = {
                h.get_label(): h for p in panels[0] for h in p.get_legend_handles_labels()[0]
            }
            place = {"loc": "outside lower center", "ncols": 4}
            figure.legend(handles.values(), handles.keys(), **place)


def accuracy() -> AccuracyPlot:
    """Real models and questions."""
    groups = by_task(stored_rows()).values()
    return AccuracyPlot([row for group in groups for row in group.values()])


def _fill(panel: Any, rows: list[Row], measure: Callable[[Row], float]) -> None:
    """Draws one measure of one task."""
    for method in dict.fromkeys(row["method"] for row in rows):
        found = [row for row in rows if row["method"] == method]
        colour = COLOURS[method]
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


def _unanswered(row: Row) -> float:
    return 100 * float(row["unanswered"]) / float(row["answers"])


def _tokens(row: Row) -> float:
    return float(row["tokens_mean"])


MEASURES: dict[str, Callable[[Row], float]] = {
    "right, %": share,
    "without an answer, %": _unanswered,
    "output, tokens": _tokens,
}
