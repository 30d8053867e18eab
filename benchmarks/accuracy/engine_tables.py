"""Tables of what the serving engine solved, from the rows that were measured on a GPU."""

from collections.abc import Callable, Sequence

from accuracy.comparison import (
    REGIMES,
    Group,
    against_best,
    arrow,
    by_length,
    count,
    over_budget,
    share,
    stored_rows,
    unanswered_share,
)
from accuracy.grid import Method, budget_tokens
from accuracy.summary import Row
from accuracy.task import make_task
from table import NOTHING, markdown

PAPER = "raas:stamp-rule=paper"
RULES = (
    "raas",
    "raas:recency-floor=96",
    "raas:recency-floor=48",
    PAPER,
    "raas:eviction-page-size=16,score=exact,stamp-rule=decay",
    "raas:eviction-page-size=4,score=exact,stamp-rule=decay",
    "raas:eviction-page-size=4,recency-floor=48,score=exact,stamp-rule=lrfu",
)
CONTROLS = (
    "window",
    "window:eviction-page-size=16",
    "random",
    "random:eviction-page-size=16",
    "h2o:score=exact",
    "h2o:eviction-page-size=4,score=exact",
    "h2o:eviction-page-size=16,score=exact",
)
METHODS = ("dense", *RULES, *CONTROLS)
SHARES = ("1/8", "1/4")
VARIED = "1200"  # tokens of the chains that the variants of the rule were asked
ABSENT = "–"


def overview() -> str:
    """Solved with raas, with the paper's rule and with the best control, each beside the others.

    The arrow is that of `at_shares`.
    """
    return _overview(engine_rows(), ("raas", PAPER))


def on_fresh_problems() -> str:
    """Solved with raas and with the best control, on problems that nothing was chosen on."""
    return _overview(stored_rows("accuracy_fresh"), ("raas",))


def at_shares() -> str:
    """For each length: what is solved in each regime at an eighth and a quarter of the chain.

    An arrow marks what is better or worse than the best control on the same problems, by the exact
    McNemar test.
    """
    return _per_length(engine_rows(), METHODS, SHARES, _solved)


def variants() -> str:
    """The same for every variant of the rule, at 512 too; a share is rounded down to its pages."""
    rows = [row for row in engine_rows() if row["task"].endswith(f":{VARIED}")]
    varied = [row["method"] for row in rows if row["method"] not in METHODS]
    tasks = {row["task"] for row in rows if row["method"] in varied}
    chosen = [row for row in rows if row["task"] in tasks]
    methods = (*RULES, *dict.fromkeys(varied), *CONTROLS)
    return _per_length(chosen, methods, (*SHARES, "512"), _solved)


def told_below() -> str:
    """For each rule: the lengths and budgets at which it is worse than the best control."""
    lengths = by_length(engine_rows())
    lines = []
    for method in RULES:
        signs = [
            (regime, length, budget, against_best(row, group, CONTROLS))
            for length, regimes in lengths.items()
            for regime, group in regimes.items()
            for (name, budget), row in group.items()
            if name == method
        ]
        told = [sign for *_, sign in signs if sign is not None]
        if told:
            cells = [_places([one for one in signs if one[0] == regime]) for regime in REGIMES]
            counts = (told.count(1), told.count(-1), len(told))
            lines.append([f"`{method}`", "{} / {} / {}".format(*counts), *cells])
    return markdown(["rule", "above / below / cells", *REGIMES], lines) if lines else NOTHING


def endings() -> str:
    """At a quarter of the chain: mean tokens of an output, and how many have no answer.

    Neither is known of chains that were asked until they were wrong.
    """

    def cell(row: Row, _: Group) -> str:
        unanswered = unanswered_share(row)
        if unanswered is None:
            return ABSENT
        return f"{row['tokens_mean']:,.0f} ({unanswered:.0f})"

    return _per_length(engine_rows(), METHODS, SHARES[-1:], cell)


def all_budgets() -> str:
    """Every task over every budget, without the variants."""
    return over_budget([row for row in engine_rows() if row["method"] in METHODS])


def engine_rows() -> list[Row]:
    """Stored rows that a GPU measured; the others are first looks."""
    return [row for row in stored_rows() if row["run"].get("gpu")]


def _overview(rows: Sequence[Row], rules: Sequence[str]) -> str:
    lines = []
    for length, regimes in by_length(rows).items():
        for text in SHARES:
            budget = _budgets("raas", f"{REGIMES[0]}:{length}", [text])[0]
            cells = [_beside(regimes.get(regime, {}), budget, rules) for regime in REGIMES]
            lines.append([f"{int(length):,}, {text}: L = {budget:,}", *cells])
    head = ["tokens of the chain, share", *REGIMES]
    return f"{markdown(head, lines)}\n\n{count(rows)}" if lines else NOTHING


def _per_length(
    rows: Sequence[Row],
    methods: Sequence[str],
    budgets: Sequence[str],
    cell: Callable[[Row, Group], str],
) -> str:
    parts = []
    for length, regimes in by_length(rows).items():
        lines = []
        for method in methods:
            cells = []
            for regime, group in regimes.items():
                wanted = _budgets(method, f"{regime}:{length}", budgets)
                found = [group.get((method, budget)) for budget in wanted]
                made = [cell(row, group) if row else ABSENT for row in found]
                cells.append(" / ".join(made) if any(found) else "")
            if any(cells):
                lines.append([f"`{method}`", *cells])
        shown = _budgets("raas", f"{next(iter(regimes))}:{length}", budgets)
        head = f"{int(length):,} tokens, L = {' / '.join(f'{budget:,}' for budget in shown)}"
        parts.append(markdown([head, *regimes], lines))
    return "\n\n".join([*parts, count(rows)]) if parts else NOTHING


def _beside(group: Group, budget: int | None, rules: Sequence[str]) -> str:
    shown = [group.get((method, budget)) for method in rules]
    cells = [_solved(row, group) if row else ABSENT for row in shown]
    controls = [group[name, budget] for name in CONTROLS if (name, budget) in group]
    best = max(controls, key=share, default=None)
    return " / ".join([*cells, _solved(best, group)]) if best else ABSENT


def _budgets(method: str, task: str, texts: Sequence[str]) -> list[int | None]:
    """Budgets in tokens of a method; dense has one cell without."""
    chosen = Method.of(method)
    if chosen.policy == "dense":
        return [None]
    return [budget_tokens(text, make_task(task, 0), chosen.page_size) for text in texts]


def _solved(row: Row, group: Group) -> str:
    mark = "" if row["method"] == "dense" else arrow(row, group, CONTROLS)
    return f"{share(row):.1f}".removesuffix(".0") + mark


def _places(signs: Sequence[tuple[str, str, int | None, int | None]]) -> str:
    """Where the sign is -1: budgets after their length."""
    places: dict[str, list[int]] = {}
    for _, length, budget, sign in signs:
        if sign == -1 and budget is not None:
            places.setdefault(length, []).append(budget)
    return "; ".join(
        f"{int(length):,}: {', '.join(f'{budget:,}' for budget in sorted(budgets))}"
        for length, budgets in places.items()
    )


TABLES: dict[str, Callable[[], str]] = {
    "accuracy": overview,
    "accuracy-fresh": on_fresh_problems,
    "accuracy-budgets": all_budgets,
    "accuracy-shares": at_shares,
    "accuracy-below": told_below,
    "accuracy-variants": variants,
    "accuracy-endings": endings,
}
