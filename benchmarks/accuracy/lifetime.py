"""Lives of tokens, read off the samples of a trace stream."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from raas_sglang.trace import TokenTrace, token_table


class Lifetime(NamedTuple):
    """A generated token in one layer and KV head until it is overwritten.

    Attributes:
        layer: Counted from the first.
        head: KV head.
        birth: Step that generated it.
        death: First sample at which another token had its place; None if it lived to the end.
    """

    layer: int
    head: int
    birth: int
    death: int | None


def lifetimes(events: Iterable[TokenTrace]) -> list[Lifetime]:
    """Returns the lives of all tokens of one request.

    Args:
        events: Its samples in the order of their steps, from one rank.
    """
    alive: dict[tuple[int, int, int], int] = {}
    lives: list[Lifetime] = []
    for event in events:
        births = token_table(event).births
        layers, heads, tokens = event.shape
        for layer, head, place in (
            (y, h, n) for y in range(layers) for h in range(heads) for n in range(tokens)
        ):
            at, birth = (layer, head, place), int(births[layer, head, place])
            before = alive.get(at, birth)
            if before != birth:
                lives.append(Lifetime(layer, head, before, event.step))
            alive[at] = birth
    lives += [Lifetime(y, h, birth, None) for (y, h, _), birth in alive.items()]
    return sorted(lives, key=lambda life: life[:3])


def as_row(lives: Iterable[Lifetime]) -> list[list[Any]]:
    """Lives as they are stored."""
    return [list(life) for life in lives]


def of_row(stored: Iterable[Iterable[Any]]) -> list[Lifetime]:
    """The way back from `as_row`."""
    return [Lifetime(*life) for life in stored]
