"""Which earlier results the lines of a program use: one generator of operands for each regime.

The language is the same in all of them, so the model solves programs of regimes that it was not
trained on. Operands count from the first input.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

NUM_INPUTS = 4
SECTION_LINES = (20, 40)  # shortest and longest section
HOT_LEMMAS = (2, 3)
RECENT_LINES = 3
SILENT_LEMMAS = 3
SILENT_SHARE = 0.6  # of the lines, between the lemmas' definition and their first use
FACT_SHARE = 0.8  # of the lines, before the one that uses the fact
USES_TO_RESTATE = 3  # uses of a lemma after which it is checked and restated


class Operands(NamedTuple):
    """Operands of a line and, where the regime decides it, the operator between them."""

    left: int
    right: int
    operator: str | None = None


def uniform(rng: random.Random, num_lines: int) -> list[Operands]:
    """Both operands out of all earlier names."""
    return [_pair(rng, range(NUM_INPUTS + i)) for i in range(num_lines)]


def milestone(rng: random.Random, num_lines: int) -> list[Operands]:
    """Sections that each keep using two or three lemmas of their own."""
    operands: list[Operands] = []
    _add_sections(rng, operands, num_lines, range(NUM_INPUTS))
    return operands


def stated_once(rng: random.Random, num_lines: int) -> list[Operands]:
    """As `milestone`, but the first line is a fact that one late line uses, and no other does."""
    operands = [_pair(rng, range(NUM_INPUTS))]
    _add_sections(rng, operands, num_lines, range(NUM_INPUTS))
    use = min(round(FACT_SHARE * num_lines), num_lines - 1)
    if use:
        operands[use] = Operands(NUM_INPUTS, operands[use].right)
    return operands


def silent(rng: random.Random, num_lines: int) -> list[Operands]:
    """Lemmas of the first lines, silent during sections of other lemmas, then used in each line."""
    lemmas = min(SILENT_LEMMAS, num_lines)
    operands = [_pair(rng, range(NUM_INPUTS)) for _ in range(lemmas)]
    _add_sections(rng, operands, max(lemmas, round(SILENT_SHARE * num_lines)), range(NUM_INPUTS))
    while len(operands) < num_lines:
        recent = _recent(rng, len(operands), RECENT_LINES)
        operands.append(_shuffled(rng, NUM_INPUTS + rng.randrange(lemmas), recent))
    return operands


def restated(rng: random.Random, num_lines: int) -> list[Operands]:
    """As `milestone`, but every few uses a lemma is used twice in a row and restated.

    After ``r = lemma + x`` stands the check ``new = r - x``, which is the lemma's value, and later
    lines use the new name.
    """
    operands: list[Operands] = []
    handed_over = range(NUM_INPUTS)
    while len(operands) < num_lines:
        length = min(rng.randint(*SECTION_LINES), num_lines - len(operands))
        _add_restated_section(rng, operands, length, handed_over)
        handed_over = _last(operands)
    return operands


OPERANDS: dict[str, Callable[[random.Random, int], list[Operands]]] = {
    generator.__name__: generator
    for generator in (uniform, milestone, stated_once, silent, restated)
}


def _add_sections(
    rng: random.Random, operands: list[Operands], num_lines: int, handed_over: range
) -> None:
    """Appends sections up to a number of lines; the first one begins with ``handed_over``.

    A section hears of the one before it through that one's last results alone.
    """
    while len(operands) < num_lines:
        first = NUM_INPUTS + len(operands)  # the section's first name
        length = min(rng.randint(*SECTION_LINES), num_lines - len(operands))
        lemmas = min(rng.randint(*HOT_LEMMAS), length)
        for i in range(length):
            if i < lemmas:
                operands.append(_pair(rng, handed_over))
            else:
                recent = first + i - 1 - rng.randrange(min(RECENT_LINES, i))
                operands.append(_shuffled(rng, first + rng.randrange(lemmas), recent))
        handed_over = _last(operands)


def _add_restated_section(
    rng: random.Random, operands: list[Operands], length: int, handed_over: range
) -> None:
    start = len(operands)
    count = min(rng.randint(*HOT_LEMMAS), length)
    lemmas = [NUM_INPUTS + start + i for i in range(count)]
    operands.extend(_pair(rng, handed_over) for _ in range(count))
    uses = [0] * count
    while len(operands) < start + length:
        chosen = rng.randrange(count)
        recent = _recent(rng, len(operands), min(RECENT_LINES, len(operands) - start))
        uses[chosen] += 1
        if uses[chosen] % USES_TO_RESTATE or len(operands) + 1 == start + length:
            operands.append(_shuffled(rng, lemmas[chosen], recent))
        else:
            result = NUM_INPUTS + len(operands)
            operands.append(Operands(lemmas[chosen], recent, "+"))
            operands.append(Operands(result, recent, "-"))
            lemmas[chosen] = result + 1


def _recent(rng: random.Random, line: int, reach: int) -> int:
    """One of the last results before a line."""
    return NUM_INPUTS + line - 1 - rng.randrange(reach)


def _last(operands: list[Operands]) -> range:
    """The results that a section hands over."""
    end = NUM_INPUTS + len(operands)
    return range(end - RECENT_LINES, end)


def _pair(rng: random.Random, names: range) -> Operands:
    return Operands(rng.choice(names), rng.choice(names))


def _shuffled(rng: random.Random, lemma: int, recent: int) -> Operands:
    pair = [lemma, recent]
    rng.shuffle(pair)
    return Operands(*pair)
