"""All tables of accuracy in Markdown, made from the stored rows alone.

``python -m accuracy.tables`` prints them; the documents have them through `report.py`.
"""

from collections.abc import Callable

from accuracy import engine_tables, lost_tables, offline_tables
from table import NOTHING

TABLES: dict[str, Callable[[], str]] = {
    **engine_tables.TABLES,
    **offline_tables.TABLES,
    lost_tables.NAME: lambda: lost_tables.over_budget() or NOTHING,
    "attention-lost-regimes": lambda: lost_tables.by_regime() or NOTHING,
}

if __name__ == "__main__":
    for name, make in TABLES.items():
        print(f"## {name}\n\n{make()}\n")
