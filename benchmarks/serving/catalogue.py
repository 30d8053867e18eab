"""Requests of the reasoner with answers that are known, to hold a crowded server to."""

from dataclasses import dataclass, field
from typing import Any

from reasoner.problem import Problem, grade, make_problem

MARGIN_TOKENS = 40
PROGRAMS = 2
INPUTS = 2  # to each program: their prompts share it


@dataclass
class Entry:
    """One request and what a server answers that runs nothing else.

    Attributes:
        problem: What is asked.
        policy: Its KV policy.
        budget: L in tokens, None for `dense`.
        quiet: Texts of the runs with nothing beside them: the first from an empty radix tree, the
            others with the prompt in it.
    """

    problem: Problem
    policy: str
    budget: int | None
    quiet: list[str] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Most tokens that it generates."""
        return self.problem.generated_tokens + MARGIN_TOKENS

    @property
    def keeps_all(self) -> bool:
        """Whether nothing that it generates is given up."""
        return self.budget is None or self.budget >= self.tokens

    @property
    def name(self) -> str:
        """For rows and messages."""
        budget = "" if self.budget is None else f" {self.budget}"
        seeds = f"{self.problem.program_seed}/{self.problem.input_seed}"
        return f"{self.policy}{budget}, {self.problem.num_lines} lines, seeds {seeds}"

    def body(self, **extra: Any) -> dict[str, Any]:
        """The request for `/generate`."""
        chosen = {"kv_policy": self.policy, "kv_budget": self.budget}
        params = {
            "temperature": 0,
            "max_new_tokens": self.tokens,
            "custom_params": {key: value for key, value in chosen.items() if value is not None},
        }
        return {"text": self.problem.prompt, "sampling_params": params, **extra}

    def is_solved(self, text: str) -> bool:
        """Whether a finished text is the right chain."""
        return grade(self.problem, text).chain_right

    def verdict(self, text: str, is_whole: bool) -> str:
        """Judges a text.

        Args:
            text: What came.
            is_whole: Whether the request came to its end; else a beginning is enough.

        Returns:
            `equal`: as a quiet run's, word for word. `right`: another text, but the right chain of
            a request that keeps all; a retracted one is computed again in another way. `wrong`:
            neither, so something other than its prompt has changed it.
        """
        if is_whole:
            if text in self.quiet:
                return "equal"
            return "right" if self.keeps_all and self.is_solved(text) else "wrong"
        if any(quiet.startswith(text) for quiet in self.quiet):
            return "equal"
        chain = f" {self.problem.chain}"
        return "right" if self.keeps_all and chain.startswith(text) else "wrong"


def make_catalogue(lines: list[int], budgets: list[int], seed: int) -> list[Entry]:
    """Returns requests of all policies over programs of all lengths.

    Args:
        lines: Lengths of the programs.
        budgets: Budgets of `raas`; the smallest serves the other policies.
        seed: First seed of the programs.
    """
    choices: list[tuple[str, int | None]] = [("dense", None), *(("raas", b) for b in budgets)]
    choices += [("window", min(budgets)), ("random", min(budgets))]
    return [
        Entry(make_problem("milestone", length, seed + program, inputs), policy, budget)
        for length in lines
        for program in range(PROGRAMS)
        for inputs in range(INPUTS)
        for policy, budget in choices
    ]
