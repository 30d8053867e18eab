"""RaaS as published."""

from collections.abc import Sequence

from raas_kernels import Policy
from raas_sglang.policies.policy import NaiveHead, PolicyInfo, Vector, dot

_PAGE = 16


class NaiveRaasPaper(NaiveHead):
    """Stamps the best half of the pages at each step; gives up the page with the oldest stamp.

    Pages hold 16 tokens. The page being filled bears the newest stamp. A page's score is the
    largest product of its keys with a query, which the paper estimates by Quest's bound.
    """

    page = 0

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.stamps: dict[int, int] = {}
        self.births: dict[int, int] = {}

    def store(self, step: int, key: Vector, value: Vector) -> int:
        """Its page is stamped as it is filled."""
        place = super().store(step, key, value)
        page = place // _PAGE
        self.stamps[page] = step
        if step % _PAGE == 0:
            self.births[page] = step
        return place

    def victim(self, step: int) -> int:
        """The next place of the page that was given up."""
        return self.page * _PAGE + step % _PAGE

    def attend(self, step: int, queries: Sequence[Vector]) -> None:
        """Stamps half as many pages as the budget has, of those that are full and older."""
        scores = {
            page: max(
                dot(query, self.tokens[page * _PAGE + i].key)
                for query in queries
                for i in range(_PAGE)
            )
            for page, birth in self.births.items()
            if birth < step // _PAGE * _PAGE
        }
        best = sorted(scores, key=lambda page: (-scores[page], page))
        for page in best[: max(1, self.budget // _PAGE // 2)]:
            self.stamps[page] = step

    def choices(self, step: int) -> list[tuple[float, int]]:
        """Pages, once one is full."""
        if step + 1 < self.budget or (step + 1) % _PAGE:
            return []
        oldest = sorted(self.stamps, key=lambda page: (self.stamps[page], self.births[page]))
        return [(float(rank), page) for rank, page in enumerate(oldest)]

    def adopt(self, places: list[int]) -> None:
        """One page."""
        (self.page,) = places


POLICY = PolicyInfo(
    Policy.RAAS_PAPER,
    "Gives up the page of 16 generated tokens that was longest not among the most attended half.",
    "the logits of this step's queries, at every step",
    "RaaS (arXiv 2502.11147), with exact products in place of Quest's bounds",
    NaiveRaasPaper,
)
