"""Questions with a whole answer each: worked solutions of data sets, or stored dense answers."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.accuracy.dataset import ANSWER_MARK
from benchmarks.accuracy.grid import make_task
from benchmarks.accuracy.samples import read_samples

CALCULATION = re.compile(r"<<.*?>>")  # GSM8K has each, for a tool, beside its result
END = "The answer is"


@dataclass(frozen=True)
class Text:
    """A user's message and what answers it; the index is that of the problem in its task."""

    index: int
    message: str
    answer: str


def read_texts(source: str) -> tuple[str, list[Text]]:
    """Returns the name of a task and its texts in order.

    Args:
        source: ``DATASET:FILE`` or ``DATASET*COUNT:FILE``, as tasks are named. A file of samples
            gives the answers of its dense cell; one of a data set its own solutions.

    Raises:
        ValueError: there is no file, or nothing of that name in it, or a row has no solution.
    """
    name, _, path = source.partition(":")
    if not Path(path).is_file():
        raise ValueError(f"texts must be NAME:FILE with a file that exists, got {source!r}")
    rows = list(read_samples(Path(path)))
    if rows and "method" in rows[0]:
        texts = {
            row["index"]: Text(row["index"], row["prompt"], row["text"])
            for row in rows
            if (row["task"], row["method"]) == (name, "dense")
        }
        found = [texts[index] for index in sorted(texts)]
    else:
        task, each = make_task(source, 0), int(name.partition("*")[2] or 1)
        solutions = [_solution(index, row) for index, row in enumerate(rows)]
        starts = range(0, len(rows) - each + 1, each)
        answers = ["\n\n".join(solutions[start : start + each]) for start in starts]
        found = [Text(i, task.prompt(i), answer) for i, answer in enumerate(answers)]
    if not found:
        raise ValueError(f"{path} must have texts of {name}, or dense samples of it; got none")
    return name, found


def _solution(index: int, row: dict[str, Any]) -> str:
    """Returns a worked solution: MATH's field of that name, or GSM8K's answer."""
    fields = {key.lower(): value for key, value in row.items()}
    solution = fields.get("solution", fields.get("answer"))
    if not isinstance(solution, str):
        raise ValueError(
            f"row {index} must have a solution, or an answer with its steps, as a text; "
            f"got the fields {', '.join(row)}"
        )
    return CALCULATION.sub("", solution).replace(ANSWER_MARK, END)
