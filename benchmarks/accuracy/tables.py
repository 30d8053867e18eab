"""Tables of accuracy in Markdown, made from the stored rows alone.

``python -m accuracy.tables`` prints all of them; the documents have them through `report.py`.
"""

from collections.abc import Callable, Iterable, Sequence

import stored
from accuracy import lost_tables
from accuracy.significance import mcnemar
from accuracy.summary import Row, problems, read_rows
from table import NOTHING, markdown

# The question of what a budget costs; what else was tried is a table of its own.
DEFAULTS = ("dense", "raas", "raas:score=exact,stamp-rule=decay")
CONTROLS = ("window", "random", "h2o:score=exact")
OFFLINE = (
    "offline:rule=top-r,score=bound",
    "offline:rule=top-r",
    "offline:rule=decay",
    "offline:page=4,rule=decay",
    "offline:decay=128,floor=48,page=4,rule=lrfu",
    "offline:page=4,rule=h2o",
)
OFFLINE_CONTROLS = ("offline:rule=window", "offline:rule=random", "offline:rule=h2o")
SIGNIFICANT = 0.05
Group = dict[tuple[str, int | None], Row]  # method and budget


def stored_rows() -> list[Row]:
    """The rows of the repository."""
    return read_rows(stored.RESULTS / "accuracy.jsonl")


def over_budget(rows: Sequence[Row]) -> str:
    """For each task: the share solved with each method over the budget.

    A star marks what differs from dense on the same problems, by the exact McNemar test.
    """
    return _per_task(rows, "solved, %, budget", _share)


def by_regime(rows: Sequence[Row]) -> str:
    """For each length and share of it that is kept: what is solved offline in each regime.

    An arrow marks what is better or worse than the best control on the same problems, by the exact
    McNemar test.
    """
    chosen = [row for row in rows if row["method"] in (*OFFLINE, *OFFLINE_CONTROLS)]
    lengths: dict[str, dict[str, Group]] = {}
    for task, group in _tasks(chosen).items():
        regime, _, length = task.partition(":")
        lengths.setdefault(length, {})[regime] = group
    parts = []
    for length, regimes in lengths.items():
        for budget in sorted({budget for group in regimes.values() for _, budget in group}):
            lines = []
            for method in (*OFFLINE, *OFFLINE_CONTROLS):
                cells = [_against_best(group, method, budget) for group in regimes.values()]
                if any(cells):
                    lines.append([f"`{method}`", *cells])
            parts.append(markdown([f"{length} tokens, L = {budget:,}", *regimes], lines))
    counts = sorted({row["n"] for row in chosen})
    note = f"n = {' to '.join(map(str, dict.fromkeys((*counts[:1], *counts[-1:]))))}."
    return "\n\n".join([*parts, note]) if parts else NOTHING


def _against_best(group: Group, method: str, budget: int | None) -> str:
    row = group.get((method, budget))
    if row is None:
        return ""
    controls = [group[name, budget] for name in OFFLINE_CONTROLS if (name, budget) in group]
    mark = ""
    if controls and method in OFFLINE:
        better, worse, p = compare(row, max(controls, key=share))
        mark = "" if p >= SIGNIFICANT else "↑" if better > worse else "↓"
    low, high = (100 * x for x in row["wilson95"])
    return f"{share(row):.0f}{mark} ({low:.0f} to {high:.0f})"


def endings(rows: Sequence[Row]) -> str:
    """For each task: mean tokens of an output, and the share that has no answer in the end."""

    def cell(row: Row, group: Group) -> str:
        return f"{row['tokens_mean']:,.0f} ({100 * row['unanswered'] / row['n']:.0f})"

    chosen = [row for row in rows if row["method"] in (*DEFAULTS, *CONTROLS)]
    return _per_task(chosen, "tokens (without answer, %), budget", cell)


def against_controls(rows: Sequence[Row]) -> str:
    """Each RaaS method against the best control of its budget, on the same problems."""
    lines = ["| task | budget | method | best control | better | worse | p |"]
    lines += ["| --- | ---: | --- | --- | ---: | ---: | ---: |"]
    for task, group in _tasks(rows).items():
        for (method, budget), row in sorted(group.items(), key=lambda item: item[1]["budget"] or 0):
            found = [group[name, budget] for name in CONTROLS if (name, budget) in group]
            if not found or not method.startswith("raas"):
                continue
            best = max(found, key=lambda one: one["right"] / one["n"])
            better, worse, p = compare(row, best)
            cells = (task, f"{budget:,}", _code(row), _code(best), better, worse, f"{p:.2g}")
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) if len(lines) > 2 else NOTHING


def compare(first: Row, second: Row) -> tuple[int, int, float]:
    """`mcnemar` of two cells, over the problems that were asked in both."""
    both = sorted(problems(first, "asked") & problems(second, "asked"))
    solved = [problems(row, "solved") for row in (first, second)]
    return mcnemar(*([index in which for index in both] for which in solved))


def share(row: Row) -> float:
    """Solved problems in per cent."""
    return 100 * float(row["right"]) / float(row["n"])


def _of_all(rows: Sequence[Row]) -> str:
    return over_budget([row for row in rows if row["method"] in (*DEFAULTS, *CONTROLS)])


def _of_others(rows: Sequence[Row]) -> str:
    tried = [row for row in rows if row["method"] not in (*CONTROLS, *OFFLINE_CONTROLS, "dense")]
    several = {row["task"] for row in tried if row["method"] not in (*DEFAULTS, *OFFLINE)}
    return over_budget([row for row in tried if row["task"] in several])


_MAKERS = {
    "accuracy": _of_all,
    "accuracy-regimes": by_regime,
    "accuracy-rules": _of_others,
    "accuracy-controls": against_controls,
    "accuracy-endings": endings,
}
TABLES: dict[str, Callable[[], str]] = {
    **{name: lambda make=make: make(stored_rows()) for name, make in _MAKERS.items()},
    lost_tables.NAME: lambda: lost_tables.over_budget() or NOTHING,
    "attention-lost-regimes": lambda: lost_tables.by_regime() or NOTHING,
}


def _share(row: Row, group: Group) -> str:
    low, high = (100 * x for x in row["wilson95"])
    dense = group.get(("dense", None))
    marked = dense is not None and compare(row, dense)[2] < SIGNIFICANT
    return f"{share(row):.1f}{'*' if marked else ''} ({low:.0f} to {high:.0f})"


def _per_task(rows: Sequence[Row], corner: str, cell: Callable[[Row, Group], str]) -> str:
    parts = []
    alone: Group = {}  # what dense alone has run, by task
    for task, group in _tasks(rows).items():
        budgets = sorted({budget for _, budget in group if budget is not None})
        if not budgets:
            alone[task, None] = group["dense", None]
            continue
        columns = [f"{budget:,}" for budget in budgets]
        lines = []
        for method in dict.fromkeys(method for method, _ in group):
            found = {b: row for (name, b), row in group.items() if name == method}
            name = _code(next(iter(found.values())))
            if None in found:  # dense has no budget: once, under the largest
                empty = [""] * (len(columns) - 1)
                lines.append([name, *empty, cell(found[None], group)])
            else:
                cells = (cell(found[b], group) if b in found else "" for b in budgets)
                lines.append([name, *cells])
        counts = sorted({row["n"] for row in group.values()})
        note = f"n = {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))}"
        parts.append(markdown([f"{task}: {corner}", *columns], lines) + f"\n\n{note}.")
    if alone:
        cells = (f"`{task}` {cell(row, {})}, n = {row['n']}" for (task, _), row in alone.items())
        parts.append(f"Of `dense` alone, {corner.rpartition(',')[0]}: {'; '.join(cells)}.")
    return "\n\n".join(parts) or NOTHING


def _tasks(rows: Iterable[Row]) -> dict[str, Group]:
    """Rows by task, then by method and budget; the last one of each counts."""
    tasks: dict[str, Group] = {}
    for row in rows:
        tasks.setdefault(row["task"], {})[row["method"], row["budget"]] = row
    return tasks


def _code(row: Row) -> str:
    return f"`{row['method']}`"


if __name__ == "__main__":
    for name, make in TABLES.items():
        print(f"## {name}\n\n{make()}\n")
