"""What a policy is: its name, what it costs, and its rule written down naively."""

from collections.abc import Sequence
from dataclasses import dataclass

from raas_kernels import Policy

Vector = Sequence[float]


@dataclass(frozen=True)
class PolicyInfo:
    """One policy, from which flags, checks, documents and tests follow.

    Attributes:
        kind: What the kernels call it.
        summary: What it gives up, in one sentence.
        gathers: What it notes at each step to decide that.
        source: Where the rule is from.
        rule: The rule for one KV head, one token at a time; None where nothing is given up.
    """

    kind: Policy
    summary: str
    gathers: str
    source: str
    rule: "type[NaiveHead] | None" = None

    @property
    def name(self) -> str:
        """Its name in flags, requests and reports."""
        return self.kind.label


@dataclass
class Token:
    """A resident generated token and what a rule knows of it."""

    birth: int
    key: Vector
    value: Vector
    weight: float = 0.0


class NaiveHead:
    """One KV head of one request under a policy, in plain Python: slow, and easy to check.

    Shares no code with the kernels. Tests hold them to it.

    Args:
        budget: L in tokens.
        seed: Index of the layer and of the KV head in the model.
        scaling: Factor on q·k before the softmax.
        prompt: Keys of the prompt.

    Attributes:
        tokens: The token in each place of the budget.
    """

    def __init__(
        self, budget: int, seed: tuple[int, int], scaling: float, prompt: Sequence[Vector]
    ) -> None:
        self.budget, self.seed, self.scaling, self.prompt = budget, seed, scaling, prompt
        self.tokens: dict[int, Token] = {}

    def store(self, step: int, key: Vector, value: Vector) -> int:
        """Puts the token of a step in its place, which it returns."""
        place = step if step < self.budget else self.victim(step)
        self.tokens[place] = Token(step, key, value)
        return place

    def victim(self, step: int) -> int:
        """The place that the token of a step overwrites."""
        raise NotImplementedError

    def attend(self, step: int, queries: Sequence[Vector]) -> None:
        """Notes what the queries of a step, one for each query head, say of the tokens."""

    def choices(self, step: int) -> list[tuple[float, int]]:
        """After a step: what each place that may be given up is worth, in the order of giving up.

        Empty where nothing is chosen at the end of this step.
        """
        return []

    def adopt(self, places: list[int]) -> None:
        """Takes over the places that were chosen, the first of `choices` or others worth as much.

        Sums that are rounded otherwise may turn two tokens that are worth the same.
        """
        raise NotImplementedError

    def older(self, step: int, newest: int) -> list[int]:
        """Places of tokens outside the ``newest`` ones, after a step."""
        first = step + 1 - newest
        return [place for place, token in self.tokens.items() if token.birth < first]


def dot(a: Vector, b: Vector) -> float:
    """Product of two vectors."""
    return sum(x * y for x, y in zip(a, b, strict=True))
