"""A picture of an answer: the words that most heads gave up are dots."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DOT = "·"


class Word(NamedTuple):
    """A word with the space before it, or a line break; and the share of heads that hold it."""

    text: str
    share: float


def held_shares(births: NDArray[np.int32], generated: int) -> NDArray[np.float64]:
    """Returns [generated], the share of all heads of all layers that hold each generated token.

    Args:
        births: [Y, H, K] int32 over layers, KV heads and places, as in `TokenTable`.
        generated: Generated tokens that were stored.
    """
    heads = births.shape[0] * births.shape[1]
    return np.bincount(births.ravel(), minlength=generated) / heads


def words(
    tokens: Sequence[int], shares: Sequence[float], decode: Callable[[list[int]], str]
) -> list[Word]:
    """Joins tokens to words; the share of a word is the mean of its tokens.

    Args:
        tokens: Ids of an answer.
        shares: One for each token.
        decode: Returns the text of some ids.
    """
    groups: list[list[int]] = []
    before = "\n"
    for place, token in enumerate(tokens):
        text = decode([token])
        if text[:1].isspace() or before.endswith("\n"):
            groups.append([])
        groups[-1].append(place)
        before = text
    return [
        Word(decode([tokens[place] for place in group]), float(np.mean([shares[p] for p in group])))
        for group in groups
    ]


def picture(answer: Iterable[Word], width: int) -> list[str]:
    """Returns lines of at most ``width`` characters, each with the mean share of its words."""
    lines: list[list[Word]] = [[]]
    for text, share in answer:
        word = Word(text.strip(), share)
        length = sum(len(other.text) + 1 for other in lines[-1])
        if "\n" in text or length + len(word.text) > width - len(_line([])):
            lines.append([])
        if word.text:
            lines[-1].append(word)
    return [_line(line) for line in lines if line]


def _line(line: list[Word]) -> str:
    share = f"{np.mean([word.share for word in line]):.0%}" if line else ""
    shown = (word.text if word.share >= 0.5 else DOT * len(word.text) for word in line)
    return f"{share:>5} | {' '.join(shown)}"
