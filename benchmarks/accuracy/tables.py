"""All tables of accuracy in Markdown, made from the stored rows alone.

``python -m accuracy.tables`` prints them; the documents have them through `report.py`.
"""

from collections.abc import Callable

from accuracy.comparison import is_real, over_budget, stored_rows


def real() -> str:
    """Real models and questions."""
    return over_budget([row for row in stored_rows() if is_real(row)])


def reasoner() -> str:
    """The bundled reasoner's regimes."""
    return over_budget([row for row in stored_rows() if not is_real(row)])


TABLES: dict[str, Callable[[], str]] = {"accuracy": real, "accuracy-reasoner": reasoner}

if __name__ == "__main__":
    for name, make in TABLES.items():
        print(f"## {name}\n\n{make()}\n")
