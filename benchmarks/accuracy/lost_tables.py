"""Table and picture of the attention that given up tokens would have had, from stored rows.

python -m accuracy.lost_tables --out ../docs/plots
"""

import argparse
import json
from pathlib import Path
from statistics import fmean

from stored import Row, newest, read

# The head, as layer and query head, that fetches the operands' values: chosen by these rows, as the
# one in which what policies lose goes with the chains that they get right.
LOOK_UP = (2, 0)
DRAWN_BUDGET = 288  # a quarter of the chains
PANEL_INCHES = (1.9, 1.5)
NAME = "attention-lost"


def over_budget() -> str:
    """For each task: what each policy loses over the budget; empty if nothing is stored."""
    parts = []
    rows = lost_rows()
    for task in dict.fromkeys(row["config"]["task"] for row in rows):
        cells = {(_method(row), _budget(row)): row for row in rows if row["config"]["task"] == task}
        budgets = sorted({budget for _, budget in cells})
        head = [f"{task}: lost, budget", *(f"{budget:,}" for budget in budgets)]
        lines = [head, ["---", *("---:" for _ in budgets)]]
        for method in dict.fromkeys(method for method, _ in cells):
            found = (cells.get((method, budget)) for budget in budgets)
            lines.append([f"`{method}`", *(_cell(row) if row else "" for row in found)])
        chains = " or ".join(str(n) for n in sorted({row["repeats"] for row in cells.values()}))
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\nn = {chains}.")
    return "\n\n".join(parts)


def lost_rows() -> list[Row]:
    """Of each task, method and budget the newest row."""

    def key(row: Row) -> tuple[str, str, int]:
        return row["config"]["task"], _method(row), _budget(row)

    return list(newest(read("attention_lost"), key).values())


def drawn_rows() -> list[Row]:
    """The rows that the picture shows."""
    return [row for row in lost_rows() if _budget(row) == DRAWN_BUDGET]


def data(rows: list[Row]) -> str:
    """Returns all that the picture shows, as text; equal texts are equal pictures."""
    shown = [[row["config"]["task"], _method(row), row["over_half"]] for row in rows]
    return json.dumps(shown, separators=(",", ":"))


def draw(rows: list[Row], path: Path) -> None:
    """Draws layers x query heads, one row of panels for each task, one panel for each method."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": path.stem})
    from matplotlib import pyplot
    from matplotlib.colors import LogNorm

    tasks = list(dict.fromkeys(row["config"]["task"] for row in rows))
    methods = list(dict.fromkeys(_method(row) for row in rows))
    size = PANEL_INCHES[0] * len(methods), PANEL_INCHES[1] * len(tasks) + 0.6
    figure, panels = pyplot.subplots(
        *(len(tasks), len(methods)),
        **{"figsize": size, "sharex": True, "sharey": True, "squeeze": False},
        layout="constrained",
    )
    shown = None
    for row in rows:
        panel = panels[tasks.index(row["config"]["task"])][methods.index(_method(row))]
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


def _cell(row: Row) -> str:
    """Mass and steps of all heads, and steps of the head that looks values up, in per cent."""
    mass, half = (100 * fmean(map(fmean, row[name])) for name in ("mass", "over_half"))
    layer, head = LOOK_UP
    return f"{mass:.1f}, {half:.1f}, {100 * row['over_half'][layer][head]:.2f}"


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
