"""Problems of the bundled reasoner: straight-line programs modulo 10, solved line by line.

A prompt holds a program and then the values of its inputs. The right answer to it is a chain of
thought with one line per program line. A value is written down once, where its name is defined;
a later use repeats the name alone, so the value has to be looked up in the chain.
"""

import random
from dataclasses import dataclass
from typing import NamedTuple

from reasoner.regimes import NUM_INPUTS, OPERANDS

NUM_NAMES = 1200
REGIMES = ("uniform", "milestone")  # what the model was trained on
PROMPT_LINE_TOKENS = 6
CHAIN_LINE_TOKENS = 13
ANSWER_TOKENS = 4  # answer, name, digit, <eos>
HELD_OUT_MODULUS = 8
EOS = "<eos>"

Line = tuple[int, str, int]  # operand, operator, operand; operands count from the first input


@dataclass(frozen=True)
class Problem:
    """One problem with its only right solution.

    Attributes:
        prompt: Program, then input values; what a user sends.
        chain: The whole right output without the end-of-sequence token.
        answer: The last digit of the chain.
        program_text: The start of ``prompt`` that all inputs to one program share.
        regime: One of ``reasoner.regimes.OPERANDS``.
        num_lines: Program lines, which is also the number of lines in the chain.
        program_seed: Seed of the program and of its first name.
        input_seed: Seed of the input values.
    """

    prompt: str
    chain: str
    answer: str
    program_text: str
    regime: str
    num_lines: int
    program_seed: int
    input_seed: int

    @property
    def generated_tokens(self) -> int:
        """Tokens of the right output, the end-of-sequence token included."""
        return CHAIN_LINE_TOKENS * self.num_lines + ANSWER_TOKENS


class Grade(NamedTuple):
    """How an output compares with the right chain.

    Attributes:
        answer_right: The output ends in the right answer.
        chain_right: The output equals the chain token by token.
        first_wrong_line: Index of the first line that differs, counting from 0; the line with
            the answer has index ``num_lines``. None if the whole chain is right.
    """

    answer_right: bool
    chain_right: bool
    first_wrong_line: int | None


def lines_for_tokens(num_tokens: int) -> int:
    """Returns the number of program lines whose output is closest to ``num_tokens`` tokens."""
    return max(1, round((num_tokens - ANSWER_TOKENS) / CHAIN_LINE_TOKENS))


def make_problem(regime: str, num_lines: int, program_seed: int, input_seed: int) -> Problem:
    """Makes a held-out problem; the same arguments give the same text everywhere.

    Args:
        regime: Which earlier results a line uses: a key of ``reasoner.regimes.OPERANDS``.
        num_lines: Lines of the program, 1 to ``NUM_NAMES - NUM_INPUTS``.
        program_seed: Decides the program and its names.
        input_seed: Decides the input values only, so that problems can share a program.

    Returns:
        The problem. Its program satisfies ``is_held_out``, which no training program does.
    """
    if regime not in OPERANDS:
        raise ValueError(f"unknown regime {regime!r}, expected one of {tuple(OPERANDS)}")
    if not 1 <= num_lines <= NUM_NAMES - NUM_INPUTS:
        raise ValueError(f"num_lines must be 1 to {NUM_NAMES - NUM_INPUTS}, got {num_lines}")
    rng = random.Random(f"{regime} {num_lines} {program_seed}")
    last_start = NUM_NAMES - NUM_INPUTS - num_lines
    while True:
        lines = _program(rng, regime, num_lines)
        start = rng.randrange(last_start + 1)
        if is_held_out(start, sum(a + b for a, _, b in lines)):
            break
    input_rng = random.Random(f"inputs {input_seed}")
    inputs = [input_rng.randrange(10) for _ in range(NUM_INPUTS)]
    return render(lines, inputs, start, regime, program_seed, input_seed)


def is_held_out(start: int, operand_sum: int) -> bool:
    """Tells whether a program belongs to evaluation.

    Evaluation uses the programs for which this holds and training the others, so no program is
    ever in both, whatever the seeds.

    Args:
        start: Number of the first input's name.
        operand_sum: Sum of all operands, counted from the first input.
    """
    return (start + operand_sum) % HELD_OUT_MODULUS == 0


def grade(problem: Problem, text: str) -> Grade:
    """Compares a generated text with the right chain.

    Args:
        problem: The problem that was asked.
        text: The output, with or without a final end-of-sequence token.
    """
    got = text.split()
    if got and got[-1] == EOS:
        got.pop()
    want = problem.chain.split()
    answer_right = got[-3:] == want[-3:]
    if got == want:
        return Grade(answer_right, True, None)
    same = 0
    while same < min(len(got), len(want)) and got[same] == want[same]:
        same += 1
    return Grade(answer_right, False, min(same // CHAIN_LINE_TOKENS, problem.num_lines))


def _program(rng: random.Random, regime: str, num_lines: int) -> list[Line]:
    operands = OPERANDS[regime](rng, num_lines)
    return [(o.left, o.operator or rng.choice("+-"), o.right) for o in operands]


def render(
    lines: list[Line],
    inputs: list[int],
    start: int,
    regime: str,
    program_seed: int,
    input_seed: int,
) -> Problem:
    """Writes a program out as text and solves it.

    Args:
        lines: Operands, counted from the first input, and operators.
        inputs: Values of the inputs.
        start: Number of the first input's name.
        regime: Recorded in the problem, like the seeds.
        program_seed: See ``Problem``.
        input_seed: See ``Problem``.
    """

    def name(index: int) -> str:
        return f"v{start + index}"

    values = list(inputs)
    program, chain = [], []
    for a, op, b in lines:
        own = name(len(values))
        result = (values[a] + values[b] if op == "+" else values[a] - values[b]) % 10
        source = f"{own} = {name(a)} {op} {name(b)}"
        program.append(f"{source} ;")
        chain.append(f"{source} : {values[a]} {op} {values[b]} : {own} {result} ;")
        values.append(result)
    program_text = f"program {' '.join(program)} given"
    given = " ".join(f"{name(i)} {digit} ;" for i, digit in enumerate(inputs))
    return Problem(
        prompt=f"{program_text} {given} solve",
        chain=f"{' '.join(chain)} answer {name(len(values) - 1)} {values[-1]}",
        answer=str(values[-1]),
        program_text=program_text,
        regime=regime,
        num_lines=len(lines),
        program_seed=program_seed,
        input_seed=input_seed,
    )
