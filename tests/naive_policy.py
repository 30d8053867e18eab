"""The eviction rules written down naively, one head and one token at a time.

Follows the paper (arXiv 2502.11147, section 3): every page of generated tokens carries a timestamp,
the last step at which it was important; a page that is needed is taken from the oldest timestamp.
Shares no code with `raas_kernels`; exact where queries and keys are small integers.
"""

import math
import struct
from dataclasses import dataclass, field


@dataclass
class Page:
    """One page of the budget: the tokens of its present life, and what is known of them."""

    birth: int
    stamp: int
    keys: list[list[float]] = field(default_factory=list)
    mass: float = 0.0


class NaiveHead:
    """One KV head of one request.

    Attributes:
        tokens: Generated token that each budget slot holds.
        pages: Pages in the order of their place in the budget.
        current: Place of the page being filled.

    Args:
        floor: Newest tokens that raas does not give up, at most half of its budget.
        by_mass: Whether raas gives up the page of the least mass, as lrfu does, and not the one of
            the oldest timestamp.
    """

    def __init__(
        self,
        policy: str,
        budget: int,
        page_size: int,
        ratio: float,
        seed: tuple[int, int],
        floor: int = 0,
        by_mass: bool = False,
    ):
        self.policy, self.budget, self.page_size = policy, budget, page_size
        self.ratio, self.seed = ratio, seed
        self.floor, self.by_mass = floor, by_mass
        self.tokens: dict[int, int] = {}
        self.pages: list[Page] = []
        self.current = 0

    def store(self, step: int, key: list[float]) -> int:
        """Places the token of a step; returns its place among the budget slots."""
        if step % self.page_size == 0:
            if len(self.pages) < self.budget // self.page_size:
                self.pages.append(Page(step, step))
                self.current = len(self.pages) - 1
            else:
                self.current = self.victim(step)
                self.pages[self.current] = Page(step, step)
        page = self.pages[self.current]
        page.stamp = step
        page.keys.append(key)
        place = self.current * self.page_size + step % self.page_size
        self.tokens[place] = step
        return place

    def victim(self, step: int) -> int:
        """Place of the page to give up."""
        return min(range(len(self.pages)), key=lambda place: self.priority(step, place))

    def priority(self, step: int, place: int) -> tuple:
        page = self.pages[place]
        if self.policy == "raas":
            worth = page.mass if self.by_mass else page.stamp
            return self.is_among_newest(place), worth, page.birth
        if self.policy == "window":
            return (page.birth,)
        if self.policy == "random":
            return (mixed(step, *self.seed, place),)
        assert self.policy == "h2o"
        return page.birth > step - self.budget // 2, page.mass, page.birth

    def is_among_newest(self, place: int) -> bool:
        """Whether the floor keeps a page: counts whole pages from the newest backwards."""
        room = min(self.floor, self.budget // 2)
        newest_first = sorted(range(len(self.pages)), key=lambda p: -self.pages[p].birth)
        return place in newest_first[: room // self.page_size]

    def bound(self, place: int, queries: list[list[float]]) -> float:
        """Quest's upper bound of q·k over the page, for the best of the head's queries."""
        channels = list(zip(*self.pages[place].keys, strict=True))
        return max(
            sum(max(x * min(c), x * max(c)) for x, c in zip(query, channels, strict=True))
            for query in queries
        )

    def shares(self, scores: dict[int, float], scaling: float) -> dict[int, float]:
        """Softmax of the scores over all pages but the one being filled."""
        others = {place: score for place, score in scores.items() if place != self.current}
        weights = {place: math.exp(scaling * score) for place, score in others.items()}
        least = max(weights.values(), default=0.0) / 2**64
        weights = {place: w if w > least else 0.0 for place, w in weights.items()}
        total = sum(weights.values())
        return {place: weight / total for place, weight in weights.items()}

    def stamp_top(self, step: int, scores: dict[int, float]) -> None:
        """Gives the newest timestamp to the best pages but the one being filled, which has it."""
        count = max(1, int(self.ratio * (self.budget // self.page_size)))
        others = [place for place in scores if place != self.current]
        for place in sorted(others, key=lambda place: (-scores[place], place))[:count]:
            self.pages[place].stamp = step

    def stamp_above(self, step: int, scores: dict[int, float], alpha: float) -> None:
        for place, score in scores.items():
            if score > alpha:
                self.pages[place].stamp = step

    def stamp_decayed(self, step: int, scores: dict[int, float], decay: float) -> None:
        """Dates every page but the one being filled back by what its probability is worth."""
        for place, score in scores.items():
            if place != self.current and score > 0:
                page = self.pages[place]
                page.stamp = max(page.stamp, step + math.floor(decay * math.log(score)))

    def gather_fading(self, scores: dict[int, float], fade: float) -> None:
        """Lets what pages gathered fade and adds what is scored, but for the page being filled."""
        for place, page in enumerate(self.pages):
            gained = 0.0 if place == self.current else scores.get(place, 0.0)
            page.mass = float32(page.mass * fade + gained)


def float32(x: float) -> float:
    """The nearest number of single precision."""
    return struct.unpack("f", struct.pack("f", x))[0]


def mixed(step: int, layer: int, head: int, page: int) -> int:
    """32-bit finaliser of Chris Wellons' hash prospector over the four numbers."""
    x = (step * 0x9E3779B1 + layer * 0x85EBCA77 + head * 0xC2B2AE3D + page) % 2**32
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16
