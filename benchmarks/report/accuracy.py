"""The tables of accuracy: methods held against each other on the same questions.

`python -m benchmarks.report.accuracy ROWS` shows other rows than those of the repository.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.accuracy.significance import mcnemar
from benchmarks.accuracy.summary import Row, problems, read_rows
from benchmarks.report import store
from benchmarks.report.table import NOTHING, markdown

SIGNIFICANT = 0.05
CONTROLS = ("window", "random", "h2o", "raas-paper")
METHODS = ("dense", "raas", *CONTROLS)  # in the order of tables
# Methods of `benchmarks.accuracy.study.run`, and what they are.
STUDIED = {
    "dense": "dense",
    "raas": "**the rule of `raas`**",
    "raas:bonus=2": "with a bonus of 2 nats",
    "raas:bonus=3": "with a bonus of 3 nats",
    "raas:bonus=6": "with a bonus of 6 nats",
    "raas:bonus=8": "with a bonus of 8 nats",
    "raas:linear=1.5": "with fading 1.5 times as fast",
    "raas:least=2": "with c from 2 on",
    "raas:most=16": "with c up to 16",
    "raas:spread=1": "c = 1 in all heads",
    "raas:spread=2": "c = 2 in all heads",
    "raas:spread=3": "c = 3 in all heads",
    "raas:spread=4": "c = 4 in all heads, the rule before",
    "raas:spread=6": "c = 6 in all heads",
    "raas:spread=8": "c = 8 in all heads",
    "raas:spread=12": "c = 12 in all heads",
    "raas:spread=4,linear=0": "c = 4, no fading by age",
    "raas:spread=4,linear=2": "c = 4, fading twice as fast",
    "raas:spread=4,floor=0.5": "c = 4, the newest half spared",
    "raas:spread=4,floor=0.125": "c = 4, the newest eighth spared",
    "raas:spread=4,best=1": "c = 4, the best query head alone",
    "raas:spread=4,memory=32": "c = 4, means that forget in 32 steps",
    "raas:spread=4,memory=128": "c = 4, means that forget in 128 steps",
    "raas:spread=4,every=1": "c = 4, scored at every step",
    "raas:spread=8,centred=0": "c = 8 and no mean key, the first rule",
    "h2o:every=4": "`h2o`, every 4 steps",
    "expected-attention": "Expected Attention",
    "tri-attention": "TriAttention",
    "r-kv": "R-KV",
    "snapkv": "SnapKV (queries of the last 32 steps)",
    "tova": "TOVA",
    "window": "window",
}
Group = dict[tuple[str, int | None], Row]  # method and budget


def stored_rows(name: str = "accuracy") -> list[Row]:
    """The rows of a file in `benchmarks/results`."""
    return read_rows(store.RESULTS / f"{name}.jsonl")


def by_task(rows: Iterable[Row]) -> dict[str, Group]:
    """Rows by model and task, then by method and budget; the last one of each counts."""
    tasks: dict[str, Group] = {}
    for row in rows:
        name = f"{row['run']['model']}, {row['task']}"
        tasks.setdefault(name, {})[row["method"], row["budget"]] = row
    return tasks


def compare(first: Row, second: Row) -> tuple[int, int, float]:
    """`mcnemar` of two cells, over the questions that were asked in both."""
    both = sorted(_asked(first) & _asked(second))
    solved = [problems(row, "solved") for row in (first, second)]
    each = int(first["task"].partition("*")[2] or 1)
    return mcnemar(*([index in which for index in both] for which in solved), each)


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


def real() -> str:
    """Real models and questions."""
    return over_budget(stored_rows())


def front() -> str:
    """Real questions for the front page: dense, `raas` and the best control beside each other."""
    lines = []
    for task, group in by_task(stored_rows()).items():
        dense = group["dense", None]
        for budget in sorted(budget for method, budget in group if method == "raas"):
            row = group["raas", budget]
            control = best_control(row, group)
            against = "" if control is None else f"{share(control):.1f} (`{control['method']}`)"
            length = f"{dense['tokens_mean']:,.0f}"
            name = task.partition(", ")[2]
            cells = [f"{share(dense):.1f}", _share(row, group), against]
            lines.append([name, length, str(budget), *cells])
    head = ["questions", "tokens of an answer", "L", "dense", "`raas`", "best control"]
    return markdown(head, lines) if lines else NOTHING


def reasoner() -> str:
    """The bundled reasoner's regimes: right chains, an arrow as of `over_budget`."""
    lines = []
    for task, group in by_task(stored_rows("accuracy_reasoner")).items():
        regime, _, tokens = task.partition(", ")[2].partition(":")
        for budget in sorted({budget for _, budget in group}):
            rows = [group.get((method, budget)) for method in METHODS[1:]]
            cells = ["" if row is None else f"{share(row):.1f}{mark(row, group)}" for row in rows]
            lines.append([regime, tokens, str(budget), *cells])
    head = ["regime", "tokens of a chain", "L", *(f"`{method}`" for method in METHODS[1:])]
    return markdown(head, lines) if lines else NOTHING


def study() -> str:
    """Rules in plain torch, each with the prompt pinned; a star marks what differs from raas's."""
    rows = {(row["task"], row["budget"], row["method"]): row for row in stored_rows("rule_study")}
    cells = sorted({(task, budget) for task, budget, rule in rows if rule in ("raas", "r-kv")})
    lines = [
        [name, *(_studied(rows, (task, budget), rule) for task, budget in cells)]
        for rule, name in STUDIED.items()
    ]
    lines = [line for line in lines if any(line[1:])]  # some rules have a loss alone
    head = ["right, %, task and L", *(f"{task}, {budget}" for task, budget in cells)]
    return markdown(head, lines) if rows else NOTHING


def loss() -> str:
    """What rules cost models on given texts: how much more loss than with a dense cache."""
    models: dict[str, list[Row]] = {}
    for row in stored_rows("rule_loss"):
        models.setdefault(row["run"]["model"], []).append(row)
    return "\n\n".join(_of_model(model, rows) for model, rows in models.items()) or NOTHING


def _of_model(model: str, rows: Iterable[Row]) -> str:
    found = {(row["method"], (row["task"], row["budget"])): row for row in rows}
    cells = list(dict.fromkeys(cell for _, cell in found))
    lines = []
    for method, name in STUDIED.items():
        of_method = [found.get((method, cell)) for cell in cells]
        if method != "dense" and any(of_method):
            lines.append([name, *("" if row is None else _loss(row) for row in of_method)])
    head = f"{model}: loss more than dense, nats a token"
    return markdown([head, *(f"{task}, {budget}" for task, budget in cells)], lines)


def _loss(row: Row) -> str:
    return f"{row['more']:.3f} ± {row['error']:.3f}"


def _of_task(task: str, group: Group) -> str:
    budgets = sorted({budget for _, budget in group if budget is not None})
    lines = []
    for method in sorted({method for method, _ in group}, key=METHODS.index):
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


def _asked(row: Row) -> set[int]:
    # Rows of the study's first version do not say it: they asked the first n.
    return problems(row, "asked") if "asked" in row else set(range(row["n"]))


def _studied(
    rows: dict[tuple[str, int | None, str], Row], cell: tuple[str, int | None], rule: str
) -> str:
    row = rows.get((cell[0], None if rule == "dense" else cell[1], rule))
    if row is None:
        return ""
    ours = rows.get((*cell, "raas"))
    differs = ours is not None and compare(row, ours)[2] < SIGNIFICANT
    return f"{share(row):.1f}{'*' if differs else ''}"


if __name__ == "__main__":
    print(over_budget([row for path in sys.argv[1:] for row in read_rows(Path(path))]))
