"""Data sets of real questions with an answer each, graded with math-verify.

The prompt is the question and the instruction that the authors of DeepSeek-R1 and of Qwen's math
models recommend; the server applies the chat template, and sampling is left to the model's own
generation config, the length to its context. Files are JSON lines with the fields of the data sets
on the hub; a field ``prompt`` is asked as it is.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.accuracy.task import Verdict

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
# Where the hub has each: repository, configuration, split.
DATASETS = {
    "gsm8k": ("openai/gsm8k", "main", "test"),
    "math500": ("HuggingFaceH4/MATH-500", None, "test"),
    "aime24": ("HuggingFaceH4/aime_2024", None, "train"),
    "aime25": ("math-ai/aime25", None, "test"),
}
QUESTION_FIELDS = ("question", "problem")
# GSM8K ends its solutions in the answer.
ANSWER_MARK = "####"
SEVERAL = (
    "Solve these {} problems one after another. For each, reason step by step and put its answer "
    "within \\boxed{{}}."
)
BOX = "\\boxed{"


@dataclass(frozen=True)
class DatasetTask:
    """Questions of one data set; past the last one they are asked again.

    Attributes:
        name: Key of `DATASETS`; with several questions in a message ``KEY*COUNT``.
        prompts: Messages.
        answers: The right answers to the questions of each.
        sampling: Fields of the request; what is missing is the model's.
    """

    name: str
    prompts: list[str]
    answers: list[list[str]]
    sampling: dict[str, Any]
    output_tokens = None

    @classmethod
    def load(
        cls, name: str, path: str | None, each: int, sampling: dict[str, Any]
    ) -> "DatasetTask":
        """Reads a file, or asks the hub through `datasets` where no file is named.

        Args:
            name: Key of `DATASETS`.
            path: File of JSON lines.
            each: Questions of a message, answered one after another: a long chain of real text.
            sampling: Fields of the request.

        Raises:
            ValueError: a line has no question or no answer.
        """
        rows = list(_read_file(Path(path)) if path else _read_hub(name))
        pairs = [_pair(name, index, row) for index, row in enumerate(rows)]
        groups = [pairs[i : i + each] for i in range(0, len(pairs) - each + 1, each)]
        prompts = [_message([asked for asked, _ in group]) for group in groups]
        answers = [[answer for _, answer in group] for group in groups]
        return cls(name if each == 1 else f"{name}*{each}", prompts, answers, sampling)

    def prompt(self, index: int) -> str:
        """Returns questions and instruction as one message."""
        return self.prompts[index % len(self.prompts)]

    def verdict(self, index: int, text: str) -> Verdict:
        """Grades what math-verify finds in a text, or of several questions the boxes in order.

        Without a box it takes the last number, also of a text that was cut off.
        """
        answers = self.answers[index % len(self.answers)]
        if len(answers) == 1:
            found, right = grade(text, answers[0])
            return Verdict(right, right, found, None)
        boxes = boxed(text)[: len(answers)]
        graded = [grade(f"${box}$", answer)[1] for box, answer in zip(boxes, answers, strict=False)]
        rights = (*graded, *[False] * (len(answers) - len(graded)))
        return Verdict(all(rights), all(rights), len(boxes) == len(answers), None, rights)


def boxed(text: str) -> list[str]:
    """What stands in each outermost box of a text, braces and boxes within it included."""
    found, begin = [], text.find(BOX)
    while begin >= 0:
        begin += len(BOX)
        depth, end = 1, begin
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 2 if text[end] == "\\" else 1  # a brace after it is part of the text
        if not depth:
            found.append(text[begin : end - 1])
        begin = text.find(BOX, begin if depth else end)
    return found


def grade(text: str, answer: str) -> tuple[bool, bool]:
    """Tells whether a text has an answer, and whether it is equivalent to the right one."""
    from math_verify import parse, verify

    got = parse(text)
    return bool(got), bool(got) and verify(parse(f"${answer}$"), got)


def _read_file(path: Path) -> Iterable[dict[str, Any]]:
    return (json.loads(line) for line in path.read_text().splitlines() if line.strip())


def _read_hub(name: str) -> Iterable[dict[str, Any]]:
    from datasets import load_dataset

    repository, configuration, split = DATASETS[name]
    return load_dataset(repository, configuration, split=split)


class Asked(NamedTuple):
    """A question, or a whole message that is asked as it is."""

    text: str
    is_message: bool


def _message(asked: Sequence[Asked]) -> str:
    """Returns the message of one or of several questions."""
    if len(asked) == 1:
        return asked[0].text if asked[0].is_message else f"{asked[0].text}\n{INSTRUCTION}"
    problems = (f"Problem {place}: {one.text}" for place, one in enumerate(asked, 1))
    return "\n\n".join([SEVERAL.format(len(asked)), *problems])


def _pair(name: str, index: int, row: dict[str, Any]) -> tuple[Asked, str]:
    """Returns question and answer of a row, whatever the case of its fields' names."""
    fields = {key.lower(): value for key, value in row.items()}
    question = next((fields[key] for key in ("prompt", *QUESTION_FIELDS) if key in fields), None)
    if "answer" not in fields or question is None:
        raise ValueError(
            f"row {index} of {name} must have a question (or problem, or prompt) and an answer, "
            f"got the fields {', '.join(row)}"
        )
    answer = str(fields["answer"]).rsplit(ANSWER_MARK, 1)[-1].strip()
    return Asked(question, "prompt" in fields), answer
