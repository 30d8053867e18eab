"""The plots of speed and memory: stored rows as lines over a length."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from benchmarks.report.decode import logical_length, mebibytes_of_request, over_length
from benchmarks.report.drawing import COLOURS, drawing
from benchmarks.report.store import Row, arm_of, distinct, gpus
from benchmarks.report.throughput import (
    NAMES,
    conditions,
    gpu_name,
    headline_rows,
    in_steady_state,
)

MARKS = "os^Dvx"


class Line(NamedTuple):
    """A line of a plot.

    Attributes:
        name: What it shows.
        arm: Arm whose colour it has.
        points: Pairs of x and y, rounded to what can be seen.
    """

    name: str
    arm: str
    points: list[tuple[float, float]]


class Plot(NamedTuple):
    """What is drawn.

    Attributes:
        title: Above it.
        x: Name and unit of the x axis, which is logarithmic.
        y: Name and unit of the y axis.
        lines: None of them if nothing is stored yet.
    """

    title: str
    x: str
    y: str
    lines: list[Line]

    def data(self) -> str:
        """All that the drawing shows, as text; equal texts are equal plots."""
        return json.dumps(self, separators=(",", ":"))

    def draw(self, path: Path) -> None:
        """Draws it; see `drawing`."""
        with drawing(path, self.data(), figsize=(7, 4)) as (_, ((axes,),)):
            seen: dict[str, int] = {}
            for line in self.lines:
                # Lines of one arm have one colour and differ in their marks.
                mark = MARKS[seen.get(line.arm, 0) % len(MARKS)]
                seen[line.arm] = seen.get(line.arm, 0) + 1
                style = ("--" if line.arm == "default" else "-") + mark
                points = zip(*line.points, strict=True)
                axes.plot(*points, style, color=COLOURS[line.arm], label=line.name)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1024:g}k")
            axes.set(title=self.title, xlabel=self.x, ylabel=self.y)
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
            axes.legend(fontsize=8)


def latency() -> Plot:
    """Latency flat against growing."""
    rows = over_length().values()
    lines = _lines(rows, logical_length, lambda row: row["value"])
    return Plot(_title("Time between two tokens", rows), "logical length, tokens", "ms", lines)


def memory() -> Plot:
    """Memory flat against growing."""
    rows = over_length().values()
    lines = _lines(rows, logical_length, mebibytes_of_request)
    return Plot(_title("KV cache of a request", rows), "logical length, tokens", "MiB", lines)


def throughput() -> Plot:
    """Throughput over the output length."""
    rows = in_steady_state()
    lines = _lines(rows, lambda row: row["config"]["output"], lambda row: row["value"])
    return Plot(_title("Throughput with a full queue", rows), "output, tokens", "tokens/s", lines)


def headline() -> Plot:
    """The front page's picture: throughput over the output length, two arms."""
    rows = headline_rows()
    lines = _lines(
        rows,
        lambda row: row["config"]["output"],
        lambda row: row["value"],
        lambda row: f"{NAMES[arm_of(row)].replace('`', '')}, {gpu_name(row)}",
    )
    model, weights, *others = conditions(rows)
    weights = weights.replace("**", "")
    title = f"Tokens per second: {model}, {weights}\n{', '.join(others)}"
    return Plot(title, "output, tokens", "tokens/s", lines)


def _lines(
    rows: Iterable[Row],
    x: Callable[[Row], float],
    y: Callable[[Row], float],
    name_of: Callable[[Row], str] | None = None,
) -> list[Line]:
    rows, name_of = list(rows), name_of or _name
    lines = []
    for name in distinct(name_of(row) for row in rows):
        chosen = [row for row in rows if name_of(row) == name]
        points = sorted((float(x(row)), float(f"{y(row):.4g}")) for row in chosen)
        lines.append(Line(name, chosen[0]["config"]["arm"], points))
    return lines


def _name(row: Row) -> str:
    """What tells a line from the others."""
    config = row["config"]
    parts = [config["shape"], config["arm"]]
    if "batch" in config:
        parts.append(f"batch {config['batch']}")
    elif config["budget"]:
        parts.append(f"L {config['budget']}")
    elif config["queue"] == "fits":
        parts.append("as many as fit")
    return ", ".join([*parts, gpu_name(row)])


def _title(name: str, rows: Iterable[Row]) -> str:
    return f"{name} ({', '.join(distinct(gpus(row) for row in rows))})"
