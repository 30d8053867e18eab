"""Tables of first looks: rows that a CPU measured, in plain torch or through the engine."""

from collections.abc import Callable, Sequence

from accuracy.comparison import Group, arrow, by_length, count, over_budget, share, stored_rows
from accuracy.summary import Row
from table import NOTHING, markdown

RULES = (
    "offline:rule=top-r,score=bound",
    "offline:rule=top-r",
    "offline:rule=decay",
    "offline:page=4,rule=decay",
    "offline:decay=128,floor=48,page=4,rule=lrfu",
    "offline:decay=128,floor=96,page=2,rule=lrfu,score=bound",
    "offline:page=4,rule=h2o",
    "offline:rule=select,score=bound",  # Quest: it gives up nothing, and needs O(N) memory
)
CONTROLS = ("offline:rule=window", "offline:rule=random", "offline:rule=h2o")


def by_regime(rows: Sequence[Row]) -> str:
    """For each length and budget: what is solved in each regime.

    An arrow marks what is better or worse than the best control on the same problems, by the exact
    McNemar test.
    """
    chosen = [row for row in rows if row["method"] in (*RULES, *CONTROLS)]
    parts = []
    for length, regimes in by_length(chosen).items():
        for budget in sorted({budget for group in regimes.values() for _, budget in group}):
            lines = []
            for method in (*RULES, *CONTROLS):
                cells = [_cell(group, method, budget) for group in regimes.values()]
                if any(cells):
                    lines.append([f"`{method}`", *cells])
            parts.append(markdown([f"{length} tokens, L = {budget:,}", *regimes], lines))
    return "\n\n".join([*parts, count(chosen)]) if parts else NOTHING


def others(rows: Sequence[Row]) -> str:
    """Every rule that was looked at, over the budget, where there is more than `by_regime` has."""
    tried = [row for row in rows if row["method"] not in CONTROLS]
    several = {row["task"] for row in tried if row["method"] not in RULES}
    return over_budget([row for row in tried if row["task"] in several])


def cpu_rows() -> list[Row]:
    """Stored rows that no GPU measured."""
    return [row for row in stored_rows() if not row["run"].get("gpu")]


def _cell(group: Group, method: str, budget: int | None) -> str:
    row = group.get((method, budget))
    if row is None:
        return ""
    low, high = (100 * x for x in row["wilson95"])
    return f"{share(row):.0f}{arrow(row, group, CONTROLS)} ({low:.0f} to {high:.0f})"


TABLES: dict[str, Callable[[], str]] = {
    "accuracy-regimes": lambda: by_regime(cpu_rows()),
    "accuracy-rules": lambda: others(cpu_rows()),
}
