"""Lives of pages, read off the samples of a trace stream."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from raas_sglang.trace import PageTrace, page_table


class Lifetime(NamedTuple):
    """A page of one layer and KV head from its first token until it is overwritten.

    Attributes:
        layer: Counted from the first.
        head: KV head.
        birth: Step that wrote its first token.
        death: First sample at which another page had its place; None if it lived to the end.
        used: Samples at which it was important, once it was full, as pairs: first and last of each
            run of consecutive ones. Its timestamp moved, or its mass gained more than had faded.
    """

    layer: int
    head: int
    birth: int
    death: int | None
    used: list[list[int]]


class _Page:
    """A page that lives."""

    def __init__(self, birth: int, stamp: int, mass: float) -> None:
        self.birth, self.stamp, self.mass = birth, stamp, mass
        self.used: list[list[int]] = []

    def note(self, stamp: int, mass: float, step: int, before: int, is_filling: bool) -> None:
        """Notes a sample; `before` is the step of the sample before it."""
        if (stamp > self.stamp or mass > self.mass) and not is_filling:
            if self.used and self.used[-1][1] == before:
                self.used[-1][1] = step
            else:
                self.used.append([step, step])
        self.stamp, self.mass = stamp, mass


def lifetimes(events: Iterable[PageTrace]) -> list[Lifetime]:
    """Returns the lives of all pages of one request.

    Args:
        events: Its samples in the order of their steps, from one rank.
    """
    alive: dict[tuple[int, int, int], _Page] = {}
    lives: list[Lifetime] = []
    before = -1
    for event in events:
        table = page_table(event)
        layers, heads, pages = event.shape
        for layer, head, page in (
            (y, h, n) for y in range(layers) for h in range(heads) for n in range(pages)
        ):
            place = layer, head, page
            birth, stamp = int(table.births[place]), int(table.stamps[place])
            mass = float(table.mass[place])
            found = alive.get(place)
            if found is None or found.birth != birth:
                if found is not None:
                    lives.append(Lifetime(layer, head, found.birth, event.step, found.used))
                alive[place] = found = _Page(birth, stamp, mass)
            is_filling = int(table.current[layer, head]) == page
            found.note(stamp, mass, event.step, before, is_filling)
        before = event.step
    lives += [Lifetime(y, h, page.birth, None, page.used) for (y, h, _), page in alive.items()]
    return sorted(lives, key=lambda life: life[:3])


def as_row(lives: Iterable[Lifetime]) -> list[list[Any]]:
    """Lives as they are stored."""
    return [list(life) for life in lives]


def of_row(stored: Iterable[Iterable[Any]]) -> list[Lifetime]:
    """The way back from `as_row`."""
    return [Lifetime(*life) for life in stored]
