"""Training sequences as arrays, in the format of ``reasoner.problem``.

Two kinds of sequence: whole problems (prompt and chain) and, for the first stages, pure recall,
where things stated once are asked for again. ``python -m reasoner.stream`` checks that the
problems made here agree with ``reasoner.problem`` token by token.
"""

from dataclasses import dataclass

import numpy as np

from reasoner.problem import (
    CHAIN_LINE_TOKENS,
    HELD_OUT_MODULUS,
    NUM_NAMES,
    PROMPT_LINE_TOKENS,
    REGIMES,
    render,
)
from reasoner.regimes import HOT_LEMMAS, NUM_INPUTS, RECENT_LINES, SECTION_LINES
from reasoner.tokenizer import EOS, FIRST_NAME, PAD, VOCAB, encode

# What a token asks of the model; the training loss skips class 0.
SKIP, LOOKUP, RESULT, COPY, NEXT, SYNTAX = range(6)
CLASS_NAMES = ("skip", "lookup", "result", "copy", "next", "syntax")

_DIGIT, _PLUS, _MINUS = VOCAB["0"], VOCAB["+"], VOCAB["-"]
_LINE_CLASSES = (
    *(NEXT, SYNTAX, COPY, COPY, COPY, SYNTAX),  # name = a op b :
    *(LOOKUP, SYNTAX, LOOKUP, SYNTAX),  # value op value :
    *(SYNTAX, RESULT, SYNTAX),  # name result ;
)
_EDGE_BIAS = 64  # how far a drawn first name may lie outside, before clipping


@dataclass(frozen=True)
class Mix:
    """What the batches of a training stage hold.

    Attributes:
        lines: Smallest and largest number of lines; a batch has one number of lines.
        names: Names in use, ``v0`` to ``v<names - 1>``.
        recall: Share of the rows that are pure recall.
        tokens: Tokens in a batch, which decides its number of rows.
        short: Share of the batches whose number of lines is drawn up to a quarter of the largest.
    """

    lines: tuple[int, int]
    names: int = NUM_NAMES
    recall: float = 0.0
    tokens: int = 131072
    short: float = 0.0


def problem_length(num_lines: int) -> int:
    """Tokens of prompt, chain and end of sequence together."""
    return (PROMPT_LINE_TOKENS + CHAIN_LINE_TOKENS) * num_lines + 3 * NUM_INPUTS + 7


def make_batch(rng: np.random.Generator, mix: Mix) -> tuple[np.ndarray, np.ndarray]:
    """Draws one batch.

    Args:
        rng: Source of all randomness.
        mix: What to draw.

    Returns:
        ``(tokens, classes)``, int16 and uint8, both ``[rows, length]``.
    """
    low, high = mix.lines
    if rng.random() < mix.short:
        high = max(low, high // 4)
    num_lines = int(rng.integers(low, high + 1))
    length = problem_length(num_lines)
    rows = max(4, mix.tokens // length)
    recall = round(rows * mix.recall)
    tokens, classes = make_problems(rng, rows - recall, num_lines, mix.names)
    if recall:
        makers = (recall_values, recall_lines, recall_uses)
        shares = np.diff(np.linspace(0, recall, len(makers) + 1).astype(int))
        parts = [
            make(rng, n, length, mix.names) for make, n in zip(makers, shares, strict=True) if n
        ]
        tokens = np.concatenate([tokens, *(part[0] for part in parts)])
        classes = np.concatenate([classes, *(part[1] for part in parts)])
    return tokens, classes


def make_problems(
    rng: np.random.Generator, rows: int, num_lines: int, names: int = NUM_NAMES
) -> tuple[np.ndarray, np.ndarray]:
    """Draws whole problems, half of each regime, none of them held out for evaluation.

    Args:
        rng: Source of all randomness.
        rows: Number of problems.
        num_lines: Lines of each.
        names: Names in use.

    Returns:
        ``(tokens, classes)``, int16 and uint8, both ``[rows, problem_length(num_lines)]``.
    """
    start, a, minus, b = _programs(rng, rows, num_lines, names)
    inputs = rng.integers(0, 10, (rows, NUM_INPUTS))
    return _layout(start, a, minus, b, inputs)


def _programs(
    rng: np.random.Generator, rows: int, num_lines: int, names: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    uniform = rows // 2
    limits = np.broadcast_to(NUM_INPUTS + np.arange(num_lines), (uniform, num_lines))
    pair = rng.integers(0, limits, (2, uniform, num_lines))
    pair = np.concatenate([pair, _milestone_pairs(rng, rows - uniform, num_lines)], axis=1)
    last_start = max(0, names - NUM_INPUTS - num_lines)
    # Plain uniform starts would show the first and last names far less often than the others.
    start = rng.integers(-_EDGE_BIAS, last_start + _EDGE_BIAS + 1, rows).clip(0, last_start)
    held_out = (start + pair.sum(axis=(0, 2))) % HELD_OUT_MODULUS == 0
    start = np.where(held_out, np.where(start > 0, start - 1, start + 1), start)
    return start, pair[0], rng.integers(0, 2, (rows, num_lines)), pair[1]


def _milestone_pairs(rng: np.random.Generator, rows: int, num_lines: int) -> np.ndarray:
    shortest = SECTION_LINES[0] if num_lines > 2 * SECTION_LINES[1] else 5
    count = num_lines // shortest + 1
    ends = rng.integers(shortest, SECTION_LINES[1] + 1, (rows, count)).cumsum(axis=1)
    ends = np.minimum(ends, num_lines)
    line = np.arange(num_lines)
    section = (line[None, :, None] >= ends[:, None, :]).sum(axis=2)
    begins = np.concatenate([np.zeros((rows, 1), int), ends], axis=1)
    begin = np.take_along_axis(begins, section, axis=1)
    length = np.take_along_axis(ends, section, axis=1) - begin
    lemmas = rng.integers(HOT_LEMMAS[0], HOT_LEMMAS[1] + 1, (rows, count))
    lemmas = np.minimum(np.take_along_axis(lemmas, section, axis=1), length)

    own = line[None] - begin  # index of the line within its section
    handed = np.where(begin == 0, NUM_INPUTS, RECENT_LINES)
    lemma_pair = NUM_INPUTS + begin - 1 - rng.integers(0, handed, (2, rows, num_lines))
    hot = NUM_INPUTS + begin + rng.integers(0, lemmas)
    recent = NUM_INPUTS + line[None] - 1 - rng.integers(0, own.clip(1, RECENT_LINES))
    use_pair = np.stack([hot, recent])
    swap = rng.random((rows, num_lines)) < 0.5
    use_pair = np.where(swap, use_pair[::-1], use_pair)
    return np.where(own < lemmas, lemma_pair, use_pair)


def _layout(
    start: np.ndarray, a: np.ndarray, minus: np.ndarray, b: np.ndarray, inputs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    rows, num_lines = a.shape
    values = np.concatenate([inputs, np.zeros((rows, num_lines), inputs.dtype)], axis=1)
    row = np.arange(rows)
    sign = 1 - 2 * minus
    for i in range(num_lines):
        right = values[row, b[:, i]] * sign[:, i]
        values[row, NUM_INPUTS + i] = (values[row, a[:, i]] + right) % 10

    name = FIRST_NAME + start[:, None] + np.arange(NUM_INPUTS + num_lines)
    own, op = name[:, NUM_INPUTS:], np.where(minus, _MINUS, _PLUS)
    source = [own, "=", np.take_along_axis(name, a, 1), op, np.take_along_axis(name, b, 1)]
    digits = [_DIGIT + np.take_along_axis(values, x, 1) for x in (a, b)]
    program = _columns([*source, ";"], rows, num_lines)
    given = _columns([name[:, :NUM_INPUTS], _DIGIT + inputs, ";"], rows, NUM_INPUTS)
    result = _DIGIT + values[:, NUM_INPUTS:]
    chain = [*source, ":", digits[0], op, digits[1], ":", own, result, ";"]
    chain = _columns(chain, rows, num_lines)
    answer = _columns(["answer", own[:, -1:], result[:, -1:], EOS], rows, 1)
    parts = [_words(rows, "program"), program, _words(rows, "given"), given, _words(rows, "solve")]
    prompt_length = sum(part.shape[1] for part in parts)
    tokens = np.concatenate([*parts, chain, answer], axis=1).astype(np.int16)

    classes = np.zeros(tokens.shape, np.uint8)
    wanted = [*_LINE_CLASSES * num_lines, NEXT, SYNTAX, LOOKUP, SYNTAX]
    classes[:, prompt_length:] = wanted
    return tokens, classes


def recall_values(
    rng: np.random.Generator, rows: int, length: int, names: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws ``given`` lists that are asked again in another order, one digit per name."""
    count = max(1, min((length - 2) // 6, names))
    name, digit = _draw(rng, rows, count, names), rng.integers(0, 10, (rows, count))
    order = rng.permuted(np.tile(np.arange(count), (rows, 1)), axis=1)
    first = _columns([name, _DIGIT + digit, ";"], rows, count)
    again = [np.take_along_axis(x, order, 1) for x in (name, _DIGIT + digit)]
    again = _columns([*again, ";"], rows, count)
    parts = [_words(rows, "given"), first, _words(rows, "solve"), again]
    return _pad(parts, [SKIP, LOOKUP, SYNTAX] * count, length)


def recall_lines(
    rng: np.random.Generator, rows: int, length: int, names: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws program lines that are copied again in another order."""
    count = max(1, min((length - 2) // 12, names))
    own, minus = _draw(rng, rows, count, names), rng.integers(0, 2, (rows, count))
    a, b = FIRST_NAME + rng.integers(0, names, (2, rows, count))
    order = rng.permuted(np.tile(np.arange(count), (rows, 1)), axis=1)
    fields = [own, a, np.where(minus, _MINUS, _PLUS), b]
    again = [np.take_along_axis(x, order, 1) for x in fields]
    blocks = [_columns([x[0], "=", *x[1:], ";"], rows, count) for x in (fields, again)]
    parts = [_words(rows, "program"), blocks[0], _words(rows, "solve"), blocks[1]]
    return _pad(parts, [SKIP, SYNTAX, COPY, COPY, COPY, SYNTAX] * count, length)


def recall_uses(
    rng: np.random.Generator, rows: int, length: int, names: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws chain lines without a program whose operands are given values only."""
    count = max(1, min((length - 2) // 16, names // 2))
    name = _draw(rng, rows, 2 * count, names)
    given, own = name[:, :count], name[:, count:]
    digit = rng.integers(0, 10, (rows, count))
    a, b = rng.integers(0, count, (2, rows, count))
    minus = rng.integers(0, 2, (rows, count))
    op = np.where(minus, _MINUS, _PLUS)
    left, right = np.take_along_axis(digit, a, 1), np.take_along_axis(digit, b, 1)
    result = (left + right * (1 - 2 * minus)) % 10
    operands = [np.take_along_axis(given, x, 1) for x in (a, b)]
    chain = [own, "=", operands[0], op, operands[1], ":"]
    chain += [_DIGIT + left, op, _DIGIT + right, ":", own, _DIGIT + result, ";"]
    parts = [_words(rows, "given"), _columns([given, _DIGIT + digit, ";"], rows, count)]
    parts += [_words(rows, "solve"), _columns(chain, rows, count)]
    wanted = [SKIP if c in (NEXT, COPY) else c for c in _LINE_CLASSES]
    return _pad(parts, wanted * count, length)


def _draw(rng: np.random.Generator, rows: int, count: int, names: int) -> np.ndarray:
    """Draws ``count`` different names for each row."""
    return FIRST_NAME + np.argsort(rng.random((rows, names)), axis=1)[:, :count]


def _words(rows: int, *words: str) -> np.ndarray:
    return np.tile([VOCAB[word] for word in words], (rows, 1))


def _columns(fields: list, rows: int, count: int) -> np.ndarray:
    """Interleaves ``[rows, count]`` fields and constant words into ``[rows, count * fields]``."""
    out = np.empty((rows, count, len(fields)), np.int64)
    for i, field in enumerate(fields):
        out[:, :, i] = VOCAB[field] if isinstance(field, str) else field
    return out.reshape(rows, -1)


def _pad(parts: list, wanted: list[int], length: int) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.concatenate(parts, axis=1)[:, :length]
    classes = np.zeros((len(tokens), length), np.uint8)
    classes[:, tokens.shape[1] - len(wanted) : tokens.shape[1]] = wanted
    padded = np.full((len(tokens), length), VOCAB[PAD], np.int16)
    padded[:, : tokens.shape[1]] = tokens
    return padded, classes


def check() -> None:
    """Checks problems against ``reasoner.problem`` and the rule that keeps them apart."""
    rng = np.random.default_rng(0)
    for num_lines in (1, 5, 50, 92, 230):
        start, a, minus, b = _programs(rng, 16, num_lines, NUM_NAMES)
        inputs = rng.integers(0, 10, (16, NUM_INPUTS))
        tokens, classes = _layout(start, a, minus, b, inputs)
        assert tokens.shape[1] == problem_length(num_lines)
        assert ((start + a.sum(1) + b.sum(1)) % HELD_OUT_MODULUS != 0).all()
        for i in range(16):
            lines = [
                (int(x), "+-"[m], int(y)) for x, m, y in zip(a[i], minus[i], b[i], strict=True)
            ]
            want = render(lines, inputs[i].tolist(), int(start[i]), REGIMES[i // 8], 0, 0)
            assert tokens[i].tolist() == encode(f"{want.prompt} {want.chain} {EOS}")
            assert (classes[i] > 0).sum() == want.generated_tokens


if __name__ == "__main__":
    check()
    print("training sequences agree with reasoner.problem")
