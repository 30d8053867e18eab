"""All tables of accuracy in Markdown, made from the stored rows alone.

``python -m accuracy.tables`` prints them; the documents have them through `report.py`.
"""

from collections.abc import Callable

from accuracy.comparison import (
    best_control,
    by_task,
    is_real,
    mark,
    over_budget,
    share,
    stored_rows,
)
from accuracy.significance import mcnemar
from accuracy.summary import Row, problems
from table import NOTHING, markdown

# Methods of `accuracy.study.run`, and what they are.
STUDIED = {
    "dense": "dense",
    "raas": "**the rule of `raas`**",
    "raas:spread=4,floor=0.5,best=1": "with c = 4, the newest half spared, the best query head",
    "raas:spread=4,linear=0,floor=0.5,best=1": "that, and no fading by age",
    "raas:spread=2,linear=0,floor=0.5,best=1": "that, no fading, and c = 2",
    "raas:spread=1,linear=0,floor=0.5,best=1": "that, no fading, and c = 1, a plain Gaussian",
    "expected-attention": "Expected Attention",
    "r-kv": "R-KV",
    "snapkv": "SnapKV (queries of the last 32 steps)",
    "tova": "TOVA",
    "window": "window",
}


def real() -> str:
    """Real models and questions."""
    return over_budget([row for row in stored_rows() if is_real(row)])


def front() -> str:
    """Real questions for the front page: dense, `raas` and the best control beside each other."""
    lines = []
    for task, group in by_task(row for row in stored_rows() if is_real(row)).items():
        dense = group["dense", None]
        for budget in sorted(budget for method, budget in group if method == "raas"):
            row = group["raas", budget]
            control = best_control(row, group)
            against = "" if control is None else f"{share(control):.1f} (`{control['method']}`)"
            length = f"{dense['tokens_mean']:,.0f}"
            name = task.partition(", ")[2]
            said = f"{share(row):.1f}{mark(row, group)}"
            lines.append([name, length, str(budget), f"{share(dense):.1f}", said, against])
    head = ["questions", "tokens of an answer", "L", "dense", "`raas`", "best control"]
    return markdown(head, lines) if lines else NOTHING


def reasoner() -> str:
    """The bundled reasoner's regimes."""
    return over_budget([row for row in stored_rows() if not is_real(row)])


def study() -> str:
    """Rules in plain torch, each with the prompt pinned; a star marks what differs from raas's."""
    rows = {(row["task"], row["budget"], row["method"]): row for row in stored_rows("rule_study")}
    cells = sorted((task, budget) for task, budget, rule in rows if rule == "r-kv" and budget)
    lines = [
        [name, *(_studied(rows, (task, budget), rule) for task, budget in cells)]
        for rule, name in STUDIED.items()
    ]
    head = ["right, %, task and L", *(f"{task}, {budget}" for task, budget in cells)]
    return markdown(head, lines) if rows else NOTHING


def _studied(
    rows: dict[tuple[str, int | None, str], Row], cell: tuple[str, int | None], rule: str
) -> str:
    row = rows.get((cell[0], None if rule == "dense" else cell[1], rule))
    if row is None:
        return ""
    reference, n = rows[(*cell, "raas")], row["n"]
    solved = [problems(one, "solved") for one in (row, reference)]
    p = mcnemar(*([index in which for index in range(n)] for which in solved))[2]
    return f"{100 * row['right'] / n:.1f}{'*' if p < 0.05 else ''}"


TABLES: dict[str, Callable[[], str]] = {
    "accuracy": real,
    "accuracy-front": front,
    "accuracy-reasoner": reasoner,
    "rule-study": study,
}

if __name__ == "__main__":
    for name, make in TABLES.items():
        print(f"## {name}\n\n{make()}\n")
