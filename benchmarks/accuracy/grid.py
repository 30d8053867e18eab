"""Which cells are measured: tasks x methods x budgets, in the order of their importance."""

import argparse
import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from accuracy.task import Task, make_task

EVICTION_PAGE = 16


@dataclass(frozen=True)
class Method:
    """A policy and the settings of the server that it needs.

    Attributes:
        text: Policy, then settings as the server's ``--kv-`` flags name them, in the order of
            their names, such as ``raas:score=exact,stamp-rule=decay``.
    """

    text: str

    @classmethod
    def of(cls, text: str) -> "Method":
        """Reads a method whose settings may stand in any order."""
        policy, mark, settings = text.partition(":")
        return cls(policy + mark + ",".join(sorted(settings.split(","))))

    @property
    def policy(self) -> str:
        """What each request asks for."""
        return self.text.partition(":")[0]

    @property
    def settings(self) -> tuple[tuple[str, str], ...]:
        """Name and value of each setting."""
        given = [item for item in self.text.partition(":")[2].split(",") if item]
        pairs = [tuple(item.split("=")) for item in given]
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError(
                f"a method must be POLICY or POLICY:NAME=VALUE,..., got {self.text!r}; "
                "use raas:score=exact,stamp-rule=decay"
            )
        return tuple((name, value) for name, value in pairs)

    @property
    def page_size(self) -> int:
        """Tokens that are given up together."""
        return int(dict(self.settings).get("eviction-page-size", EVICTION_PAGE))


@dataclass(frozen=True)
class Cell:
    """One number of the result: a task under a method at a budget.

    Attributes:
        task: What is asked.
        method: How the cache is bounded.
        budget: L in tokens; None for dense.
        n: Problems to ask.
    """

    task: Task
    method: Method
    budget: int | None
    n: int

    @property
    def key(self) -> tuple[str, str, int | None]:
        """What a sample is filed under."""
        return self.task.name, self.method.text, self.budget


def read_grid(path: Path, first_seed: int) -> list[Cell]:
    """Reads a JSON list of blocks with ``tasks``, ``methods``, ``budgets`` and ``n``."""
    return [
        cell for block in json.loads(path.read_text()) for cell in make_cells(block, first_seed)
    ]


def make_cells(block: dict[str, Any], first_seed: int) -> list[Cell]:
    """Returns the product of a block, task by task, then budget by budget.

    Args:
        block: ``tasks`` and ``methods`` as texts, ``budgets`` in tokens or as a share of the
            task's output such as ``1/8``, ``n`` problems.
        first_seed: Of problems that are generated.
    """
    cells = []
    for name in block["tasks"]:
        task = make_task(name, first_seed)
        methods = [Method.of(text) for text in block["methods"]]
        dense = [m for m in methods if m.policy == "dense"]
        cells += [Cell(task, method, None, block["n"]) for method in dense]
        for text in block["budgets"]:
            for method in methods:
                if method not in dense:
                    budget = budget_tokens(str(text), task, method.page_size)
                    cells.append(Cell(task, method, budget, block["n"]))
    return cells


def budget_tokens(text: str, task: Task, page_size: int) -> int:
    """Returns a budget in tokens; a share is rounded down to whole pages of at least 16 tokens.

    Raises:
        ValueError: a share is asked of a task whose outputs have no known length.
    """
    if "/" not in text:
        return int(text)
    if task.output_tokens is None:
        raise ValueError(
            f"budgets of task {task.name} must be numbers of tokens, got {text}: "
            "the length of its outputs is not known beforehand"
        )
    page = max(EVICTION_PAGE, page_size)
    return max(page, int(Fraction(text) * task.output_tokens) // page * page)


def add_grid_flags(parser: argparse.ArgumentParser, methods: list[str]) -> None:
    """Adds the flags that `cells_of` reads."""
    parser.add_argument("--grid", type=Path, help="JSON list of blocks, instead of the next four")
    parser.add_argument("--tasks", nargs="+", default=["milestone:1200"])
    parser.add_argument("--methods", nargs="+", default=methods)
    parser.add_argument("--budgets", nargs="+", default=["256"], help="tokens, or a share: 1/8")
    parser.add_argument("--n", type=int, default=200, help="problems of each cell")
    parser.add_argument("--first-seed", type=int, default=10_000, help="of generated problems")


def cells_of(args: argparse.Namespace) -> list[Cell]:
    """The grid that a command line asks for."""
    if args.grid:
        return read_grid(args.grid, args.first_seed)
    block = {name: getattr(args, name) for name in ("tasks", "methods", "budgets", "n")}
    return make_cells(block, args.first_seed)
