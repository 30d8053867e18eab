"""A table of stored rows in Markdown: arms and the like downwards, one quantity across."""

from collections.abc import Callable, Iterable, Sequence

from benchmarks.harness.cli import flag_number
from benchmarks.report.store import Row, distinct, flags_of, gpus, source

NOTHING = "Not measured yet."


def per_heading(
    rows: Sequence[Row],
    heading_of: Callable[[Row], str],
    corner: str,
    label: Callable[[Row], str],
    column: Callable[[Row], float],
    cell: Callable[[Row], str],
) -> str:
    """One table for each heading, with what repeats it; rows that were not measured stay empty."""
    parts = []
    for heading in distinct(heading_of(row) for row in rows):
        chosen = [row for row in rows if heading_of(row) == heading]
        columns = sorted({column(row) for row in chosen})
        cells = {(label(row), column(row)): cell(row) for row in chosen}
        if len(cells) < len(chosen):
            raise ValueError(f"a cell of the table {corner!r} must have one row, got more")
        head = [f"{heading}: {corner}", *(f"{value:,g}" for value in columns)]
        lines = [
            [name, *(cells.get((name, value), "") for value in columns)]
            for name in distinct(label(row) for row in chosen)
        ]
        parts.append(markdown(head, lines) + "\n\n" + source(chosen))
    return "\n\n".join(parts) or NOTHING


def device(row: Row) -> str:
    return f"{gpus(row)}, prompt {row['config']['prompt']}"


def device_and_budget(row: Row) -> str:
    return f"{device(row)}, L = {row['config']['budget']:,}"


def device_and_pool(row: Row) -> str:
    limit = pool_limit(row)
    return device(row) + (f", a pool of {limit:,} tokens" if limit else "")


def pool_limit(row: Row) -> int | None:
    """The pool that its server was told to have, in tokens; None if it had what fits."""
    return flag_number(flags_of(row), "--max-total-tokens")


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text; the others are numbers, aligned to the right."""
    table = [head, ["---", *("---:" for _ in head[1:])], *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)


def number(value: float) -> str:
    """Three digits that say something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"
