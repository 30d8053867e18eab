"""Which cells are measured: tasks x methods x budgets, in the order of their importance."""

import argparse
import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from accuracy.task import Task, make_task
from raas_kernels.layout import BUDGET_UNIT


@dataclass(frozen=True)
class Cell:
    """One number of the result: a task under a method at a budget.

    Attributes:
        task: What is asked.
        method: Policy, as a request names it.
        budget: L in tokens; None for dense.
        n: Problems to ask.
    """

    task: Task
    method: str
    budget: int | None
    n: int

    @property
    def key(self) -> tuple[str, str, int | None]:
        """What a sample is filed under."""
        return self.task.name, self.method, self.budget


def read_grid(path: Path, first_seed: int) -> list[Cell]:
    """Reads a JSON list of blocks with ``tasks``, ``methods``, ``budgets`` and ``n``."""
    return [
        cell for block in json.loads(path.read_text()) for cell in make_cells(block, first_seed)
    ]


def make_cells(block: dict[str, Any], first_seed: int) -> list[Cell]:
    """Returns the product of a block, task by task, then budget by budget.

    Args:
        block: ``tasks`` and ``methods`` as texts, ``budgets`` in tokens or as a share of the
            task's output such as ``1/8``, ``n`` problems; ``sampling``, fields of the requests of
            data sets, may be missing.
        first_seed: Of problems that are generated.
    """
    cells = []
    for name in block["tasks"]:
        task = make_task(name, first_seed, block.get("sampling", {}))
        if "dense" in block["methods"]:
            cells.append(Cell(task, "dense", None, block["n"]))
        for text in block["budgets"]:
            budget = budget_tokens(str(text), task)
            evicting = [method for method in block["methods"] if method != "dense"]
            cells += [Cell(task, method, budget, block["n"]) for method in evicting]
    return cells


def budget_tokens(text: str, task: Task) -> int:
    """Returns a budget in tokens; a share is rounded down to a multiple of `BUDGET_UNIT`.

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
    tokens = int(Fraction(text) * task.output_tokens)
    return max(BUDGET_UNIT, tokens // BUDGET_UNIT * BUDGET_UNIT)


def add_grid_flags(parser: argparse.ArgumentParser, methods: list[str]) -> None:
    """Adds the flags that `cells_of` reads."""
    parser.add_argument("--grid", type=Path, help="JSON list of blocks, instead of the next four")
    parser.add_argument("--tasks", nargs="+", default=["milestone:1200"])
    parser.add_argument("--methods", nargs="+", default=methods)
    parser.add_argument("--budgets", nargs="+", default=["256"], help="tokens, or a share: 1/8")
    parser.add_argument("--n", type=int, default=200, help="problems of each cell")
    parser.add_argument("--greedy", action="store_true", help="of data sets; else the model's way")
    parser.add_argument("--max-tokens", type=int, help="of an answer of a data set")
    parser.add_argument("--first-seed", type=int, default=10_000, help="of generated problems")


def cells_of(args: argparse.Namespace) -> list[Cell]:
    """The grid that a command line asks for."""
    if args.grid:
        return read_grid(args.grid, args.first_seed)
    block = {name: getattr(args, name) for name in ("tasks", "methods", "budgets", "n")}
    block["sampling"] = {"temperature": 0} if args.greedy else {}
    if args.max_tokens:
        block["sampling"]["max_completion_tokens"] = args.max_tokens
    return make_cells(block, args.first_seed)
