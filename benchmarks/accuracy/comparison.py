"""Cells of the stored rows, held against each other on the same questions."""

from collections.abc import Iterable, Sequence

import stored
from accuracy.significance import mcnemar
from accuracy.summary import Row, problems, read_rows
from reasoner.regimes import OPERANDS
from table import NOTHING, markdown

SIGNIFICANT = 0.05
CONTROLS = ("window", "random", "h2o", "raas-paper")
Group = dict[tuple[str, int | None], Row]  # method and budget


def stored_rows(name: str = "accuracy") -> list[Row]:
    """The rows of a file in `benchmarks/results`."""
    return read_rows(stored.RESULTS / f"{name}.jsonl")


def is_real(row: Row) -> bool:
    """Whether a row is of real questions, not of the bundled reasoner's."""
    return row["task"].partition(":")[0] not in OPERANDS


def by_task(rows: Iterable[Row]) -> dict[str, Group]:
    """Rows by model and task, then by method and budget; the last one of each counts."""
    tasks: dict[str, Group] = {}
    for row in rows:
        name = f"{row['run']['model']}, {row['task']}"
        tasks.setdefault(name, {})[row["method"], row["budget"]] = row
    return tasks


def compare(first: Row, second: Row) -> tuple[int, int, float]:
    """`mcnemar` of two cells, over the questions that were asked in both."""
    both = sorted(problems(first, "asked") & problems(second, "asked"))
    solved = [problems(row, "solved") for row in (first, second)]
    return mcnemar(*([index in which for index in both] for which in solved))


def share(row: Row) -> float:
    """Right answers in per cent."""
    return 100 * float(row["right"]) / float(row["n"])


def best_control(row: Row, group: Group) -> Row | None:
    """The control that answers most at the budget of a row."""
    found = [group[name, row["budget"]] for name in CONTROLS if (name, row["budget"]) in group]
    return max(found, key=share, default=None)


def mark(row: Row, group: Group) -> str:
    """An arrow where a row is significantly better or worse than the best control."""
    control = best_control(row, group)
    if control is None or row["method"] in CONTROLS:
        return ""
    better, worse, p = compare(row, control)
    return "" if p >= SIGNIFICANT else "↑" if better > worse else "↓"


def over_budget(rows: Sequence[Row]) -> str:
    """For each task: right answers in per cent with each method over the budget.

    A star marks what differs from dense on the same questions, an arrow what differs from the best
    control, both by the exact McNemar test.
    """
    tasks = by_task(rows).items()
    return "\n\n".join(_of_task(task, group) for task, group in tasks) or NOTHING


def _of_task(task: str, group: Group) -> str:
    budgets = sorted({budget for _, budget in group if budget is not None})
    lines = []
    for method in dict.fromkeys(method for method, _ in group):
        found = {b: row for (name, b), row in group.items() if name == method}
        if None in found:  # dense has no budget: once, under the largest
            cells = [*[""] * (len(budgets) - 1), _share(found[None], group)]
        else:
            cells = [_share(found[b], group) if b in found else "" for b in budgets]
        lines.append([f"`{method}`", *cells])
    head = [f"{task}: right, %, budget", *(f"{budget:,}" for budget in budgets)]
    return markdown(head, lines) + f"\n\n{_count(group.values())}"


def _count(rows: Iterable[Row]) -> str:
    """Questions of the smallest and of the largest cell, and the tokens of a dense answer."""
    found = list(rows)
    counts = sorted({row["n"] for row in found})
    text = f"n = {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))}"
    dense = next((row for row in found if row["method"] == "dense"), None)
    if dense is None or dense["tokens_mean"] is None:
        return text + "."
    return f"{text}; {dense['tokens_mean']:,.0f} tokens a dense answer."


def _share(row: Row, group: Group) -> str:
    dense = group.get(("dense", None))
    differs = dense is not None and compare(row, dense)[2] < SIGNIFICANT
    return f"{share(row):.1f}{'*' if differs else ''}{mark(row, group)}"
