"""Which cells are measured: tasks x methods x budgets, in the order of their importance."""

import argparse
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from benchmarks.accuracy.dataset import DATASETS, DatasetTask
from benchmarks.accuracy.task import ReasonerTask, Task
from raas_kernels.layout import BUDGET_UNIT
from reasoner.regimes import OPERANDS


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


def make_cells(block: dict[str, Any], first_seed: int) -> list[Cell]:
    """Returns the product of a block, task by task, then budget by budget.

    Args:
        block: ``tasks`` and ``methods`` as texts, ``budgets`` in tokens or as a share of the
            task's output such as ``1/8``, ``n`` problems; ``sampling``, fields of the requests of
            data sets, may be missing.
        first_seed: Of problems that are generated.

    Raises:
        ValueError: two cells have one name, or a data set would be asked twice and answer alike.
    """
    cells: list[Cell] = []
    for name in block["tasks"]:
        task = make_task(name, first_seed, block.get("sampling", {}))
        if "dense" in block["methods"]:
            cells.append(Cell(task, "dense", None, block["n"]))
        for text in block["budgets"]:
            budget = budget_tokens(str(text), task)
            evicting = [method for method in block["methods"] if method != "dense"]
            cells += [Cell(task, method, budget, block["n"]) for method in evicting]
    keys = [cell.key for cell in cells]
    twice = [key for key in dict.fromkeys(keys) if keys.count(key) > 1]
    if twice:
        raise ValueError(
            f"each task, method and budget must be asked for once, got {twice[0]} twice; "
            "ask for files of one data set in runs of their own"
        )
    for cell in cells:
        _require_new_questions(cell)
    return cells


def _require_new_questions(cell: Cell) -> None:
    task = cell.task
    if not isinstance(task, DatasetTask) or task.sampling.get("temperature") != 0:
        return
    if cell.n > len(task.prompts):
        raise ValueError(
            f"--n must be at most the {len(task.prompts)} messages of {task.name} with --greedy, "
            f"got {cell.n}: what is asked twice is answered alike, which is no evidence"
        )


def make_task(text: str, first_seed: int, sampling: dict[str, Any] | None = None) -> Task:
    """Returns a task by name: ``REGIME:TOKENS``, or ``DATASET`` or ``DATASET:FILE`` (`dataset`).

    Args:
        text: The name.
        first_seed: Of generated problems.
        sampling: Fields of the requests of a data set.

    Raises:
        ValueError: there is no such task.
    """
    kind, _, rest = text.partition(":")
    if kind in OPERANDS:
        if not rest.isdecimal():
            raise ValueError(
                f"a reasoner task must be {kind}:TOKENS, got {text!r}; use {kind}:1200"
            )
        return ReasonerTask(kind, int(rest), first_seed)
    name, _, each = kind.partition("*")
    if name in DATASETS and (not each or each.isdecimal()):
        return DatasetTask.load(name, rest or None, int(each or 1), sampling or {})
    known = ", ".join([*OPERANDS, *DATASETS])
    raise ValueError(f"a task must be one of {known}, got {text!r}")


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
    parser.add_argument("--tasks", nargs="+", default=["milestone:1200"])
    parser.add_argument("--methods", nargs="+", default=methods)
    parser.add_argument("--budgets", nargs="+", default=["256"], help="tokens, or a share: 1/8")
    parser.add_argument("--n", type=int, default=200, help="problems of each cell")
    parser.add_argument("--greedy", action="store_true", help="of data sets; else the model's way")
    parser.add_argument("--max-tokens", type=int, help="of an answer of a data set")
    parser.add_argument("--first-seed", type=int, default=10_000, help="of generated problems")


def cells_of(args: argparse.Namespace) -> list[Cell]:
    """The grid that a command line asks for."""
    block = {name: getattr(args, name) for name in ("tasks", "methods", "budgets", "n")}
    block["sampling"] = {"temperature": 0} if args.greedy else {}
    if args.max_tokens:
        block["sampling"]["max_completion_tokens"] = args.max_tokens
    return make_cells(block, args.first_seed)
