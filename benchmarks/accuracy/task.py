"""What is asked and how an answer is graded."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from reasoner.problem import Problem, grade, lines_for_tokens, make_problem

# Room beyond the right output, so that a chain that lost its way shows whether it ends.
SLACK_TOKENS = 64


class Verdict(NamedTuple):
    """How an answer was graded.

    Attributes:
        right: What counts: the whole chain for the reasoner, the answer for a data set.
        answer_right: The final answer alone.
        answered: Whether there is a final answer at all.
        first_wrong_line: First line of the chain that differs; None if none does, or no chain is
            known.
        rights: Which questions of a message with several are answered right.
    """

    right: bool
    answer_right: bool
    answered: bool
    first_wrong_line: int | None
    rights: tuple[bool, ...] = ()


class Task(Protocol):
    """A numbered set of problems.

    Attributes:
        name: How the command line names it.
        output_tokens: Tokens of a right output; None where they are not known.
        sampling: Fields of the request that decide sampling and length; what is missing is up to
            the model's generation config.
    """

    name: str
    output_tokens: int | None
    sampling: dict[str, Any]

    def prompt(self, index: int) -> str:
        """The user's message."""

    def verdict(self, index: int, text: str) -> Verdict:
        """Grades an answer."""


@dataclass(frozen=True)
class ReasonerTask:
    """Held-out problems of the bundled reasoner, greedy.

    Attributes:
        regime: Key of `reasoner.regimes.OPERANDS`.
        tokens: Length of a chain, about.
        first_seed: Program and input seed of problem 0.
    """

    regime: str
    tokens: int
    first_seed: int

    @property
    def name(self) -> str:
        return f"{self.regime}:{self.tokens}"

    @property
    def output_tokens(self) -> int:
        return self.problem(0).generated_tokens

    @property
    def sampling(self) -> dict[str, Any]:
        return {"temperature": 0, "max_completion_tokens": self.output_tokens + SLACK_TOKENS}

    def problem(self, index: int) -> Problem:
        """The problem itself."""
        return _problem(self.regime, self.tokens, self.first_seed + index)

    def prompt(self, index: int) -> str:
        return self.problem(index).prompt

    def verdict(self, index: int, text: str) -> Verdict:
        graded = grade(self.problem(index), text)
        answered = text.split()[-3:-2] == ["answer"]
        return Verdict(graded.chain_right, graded.answer_right, answered, graded.first_wrong_line)


@lru_cache(maxsize=8192)
def _problem(regime: str, tokens: int, seed: int) -> Problem:
    return make_problem(regime, lines_for_tokens(tokens), seed, seed)
