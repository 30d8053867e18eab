"""Grading of many texts at once; math-verify takes longer than decoding them."""

from collections.abc import Sequence
from concurrent.futures import Executor
from itertools import repeat
from typing import Any, NamedTuple

from benchmarks.accuracy.grid import Cell
from benchmarks.accuracy.samples import sample_of

CHUNK = 16  # answers that a process grades at a time; the task travels with them


class Answer(NamedTuple):
    """What was decoded for a problem, and what the cache held of it at the end, in tokens."""

    index: int
    text: str
    tokens: int
    finish: str
    logical: int
    resident: int


def samples_of(cell: Cell, answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Returns the samples of a cell."""
    return [
        sample_of(cell, answer.index, answer.text, answer.tokens, answer.finish, _report(answer))
        for answer in answers
    ]


def graded(pool: Executor, cell: Cell, answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """`samples_of`, by all processes of a pool."""
    chunks = [answers[at : at + CHUNK] for at in range(0, len(answers), CHUNK)]
    return [one for part in pool.map(samples_of, repeat(cell), chunks) for one in part]


def _report(answer: Answer) -> dict[str, int]:
    return {
        "logical_tokens": answer.logical,
        "resident_tokens": answer.resident,
        "evicted_tokens": answer.logical - answer.resident,
    }
