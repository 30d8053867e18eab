"""Cells of the stored rows, held against each other on the same problems."""

from collections.abc import Callable, Iterable, Sequence

import stored
from accuracy.significance import mcnemar
from accuracy.summary import Row, problems, read_rows
from table import NOTHING, markdown

SIGNIFICANT = 0.05
REGIMES = ("milestone", "restated", "silent", "stated_once", "uniform")
Group = dict[tuple[str, int | None], Row]  # method and budget


def stored_rows(name: str = "accuracy") -> list[Row]:
    """The rows of a file in `benchmarks/results`."""
    return read_rows(stored.RESULTS / f"{name}.jsonl")


def by_task(rows: Iterable[Row]) -> dict[str, Group]:
    """Rows by task, then by method and budget; the last one of each counts."""
    tasks: dict[str, Group] = {}
    for row in rows:
        tasks.setdefault(row["task"], {})[row["method"], row["budget"]] = row
    return tasks


def by_length(rows: Iterable[Row]) -> dict[str, dict[str, Group]]:
    """The groups of `by_task` by length, the shortest first, then by regime."""
    lengths: dict[str, dict[str, Group]] = {}
    tasks = by_task(rows)
    for regime in REGIMES:
        for task, group in tasks.items():
            name, _, length = task.partition(":")
            if name == regime:
                lengths.setdefault(length, {})[regime] = group
    return dict(sorted(lengths.items(), key=lambda item: int(item[0])))


def compare(first: Row, second: Row) -> tuple[int, int, float]:
    """`mcnemar` of two cells, over the problems that were asked in both."""
    both = sorted(problems(first, "asked") & problems(second, "asked"))
    solved = [problems(row, "solved") for row in (first, second)]
    return mcnemar(*([index in which for index in both] for which in solved))


def share(row: Row) -> float:
    """Solved problems in per cent."""
    return 100 * float(row["right"]) / float(row["n"])


def unanswered_share(row: Row) -> float | None:
    """Outputs without an answer in per cent, where that is known."""
    return None if row["unanswered"] is None else 100 * float(row["unanswered"]) / float(row["n"])


def against_best(row: Row, group: Group, controls: Sequence[str]) -> int | None:
    """Says whether a cell is better than the best control of its budget, on the same problems.

    Returns:
        1 if it is better, -1 if it is worse, 0 if the test does not tell; None without a control.
    """
    found = [group[name, row["budget"]] for name in controls if (name, row["budget"]) in group]
    if not found:
        return None
    better, worse, p = compare(row, max(found, key=share))
    return 0 if p >= SIGNIFICANT else 1 if better > worse else -1


def arrow(row: Row, group: Group, controls: Sequence[str]) -> str:
    """`against_best` as a mark; controls themselves have none."""
    sign = None if row["method"] in controls else against_best(row, group, controls)
    return {1: "↑", -1: "↓"}.get(sign or 0, "")


def over_budget(rows: Sequence[Row]) -> str:
    """For each task: the share solved with each method over the budget.

    A star marks what differs from dense on the same problems, by the exact McNemar test.
    """
    tasks = by_task(rows).items()
    return "\n\n".join(_of_task(task, group, _share) for task, group in tasks) or NOTHING


def _of_task(task: str, group: Group, cell: Callable[[Row, Group], str]) -> str:
    budgets = sorted({budget for _, budget in group if budget is not None})
    lines = []
    for method in dict.fromkeys(method for method, _ in group):
        found = {b: row for (name, b), row in group.items() if name == method}
        if None in found:  # dense has no budget: once, under the largest
            cells = [*[""] * (len(budgets) - 1), cell(found[None], group)]
        else:
            cells = [cell(found[b], group) if b in found else "" for b in budgets]
        lines.append([f"`{method}`", *cells])
    head = [f"{task}: solved, %, budget", *(f"{budget:,}" for budget in budgets)]
    return markdown(head, lines) + f"\n\n{count(group.values())}"


def count(rows: Iterable[Row]) -> str:
    """Problems of the smallest and of the largest cell."""
    counts = sorted({row["n"] for row in rows})
    return f"n = {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))}."


def _share(row: Row, group: Group) -> str:
    low, high = (100 * x for x in row["wilson95"])
    dense = group.get(("dense", None))
    marked = dense is not None and compare(row, dense)[2] < SIGNIFICANT
    return f"{share(row):.1f}{'*' if marked else ''} ({low:.0f} to {high:.0f})"
