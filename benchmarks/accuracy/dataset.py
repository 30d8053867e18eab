"""Data sets of real questions with an answer each, graded with math-verify.

The prompt is the question and the instruction that the authors of DeepSeek-R1 and of Qwen's math
models recommend; the server applies the chat template, and sampling is left to the model's own
generation config, the length to its context. Files are JSON lines with the fields of the data sets
on the hub; a field ``prompt`` is asked as it is.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accuracy.task import Verdict

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


@dataclass(frozen=True)
class DatasetTask:
    """Questions of one data set; past the last one they are asked again.

    Attributes:
        name: Key of `DATASETS`.
        prompts: What is asked.
        answers: The right answer to each.
    """

    name: str
    prompts: list[str]
    answers: list[str]
    output_tokens = None

    @property
    def sampling(self) -> dict[str, Any]:
        """Nothing: all of it is the model's."""
        return {}

    @classmethod
    def load(cls, name: str, path: str | None) -> "DatasetTask":
        """Reads a file, or asks the hub through `datasets` where no file is named.

        Raises:
            ValueError: a line has no question or no answer.
        """
        rows = list(_read_file(Path(path)) if path else _read_hub(name))
        pairs = [_pair(name, index, row) for index, row in enumerate(rows)]
        return cls(name, [prompt for prompt, _ in pairs], [answer for _, answer in pairs])

    def prompt(self, index: int) -> str:
        """Returns question and instruction as one message."""
        return self.prompts[index % len(self.prompts)]

    def verdict(self, index: int, text: str) -> Verdict:
        """Grades the last answer of a text."""
        found, right = grade(text, self.answers[index % len(self.answers)])
        return Verdict(right, right, found, None)


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


def _pair(name: str, index: int, row: dict[str, Any]) -> tuple[str, str]:
    """Returns prompt and answer of a row, whatever the case of its fields' names."""
    fields = {key.lower(): value for key, value in row.items()}
    question = next((fields[key] for key in QUESTION_FIELDS if key in fields), None)
    if "answer" not in fields or (question is None and "prompt" not in fields):
        raise ValueError(
            f"row {index} of {name} must have a question (or problem, or prompt) and an answer, "
            f"got the fields {', '.join(row)}"
        )
    prompt = fields.get("prompt", f"{question}\n{INSTRUCTION}")
    return prompt, str(fields["answer"]).rsplit(ANSWER_MARK, 1)[-1].strip()
