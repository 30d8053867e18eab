"""The reasoner's regimes: programs of one language, held out, that differ in what they look up."""

import hashlib
from itertools import pairwise

import pytest

from reasoner.problem import NUM_INPUTS, REGIMES, grade, is_held_out, make_problem
from reasoner.regimes import FACT_SHARE, OPERANDS, RECENT_LINES, SILENT_LEMMAS, SILENT_SHARE

LENGTHS = (1, 2, 3, 5, 20, 46, 92, 230)
NEW = [name for name in OPERANDS if name not in REGIMES]


def lines_of(problem):
    """Own name, operands and operator of each program line, names counted from the first input."""
    names = [line.split() for line in problem.program_text.removeprefix("program ").split(" ; ")]
    numbers = [(int(n[0][1:]), int(n[2][1:]), n[3], int(n[4][1:])) for n in names if len(n) == 5]
    first = numbers[0][0] - NUM_INPUTS
    return [(own - first, a - first, op, b - first) for own, a, op, b in numbers]


@pytest.mark.parametrize("regime", OPERANDS)
@pytest.mark.parametrize("length", LENGTHS)
def test_a_problem_solves_itself_and_is_held_out(regime, length):
    for seed in range(5):
        problem = make_problem(regime, length, seed, seed)
        assert grade(problem, problem.chain).chain_right
        lines = lines_of(problem)
        assert len(lines) == length == problem.chain.count(";")
        assert all(a < own and b < own for own, a, _, b in lines)
        start = int(problem.chain.split()[0][1:]) - NUM_INPUTS
        assert is_held_out(start, sum(a + b for _, a, _, b in lines))


def test_the_problems_of_stored_results_stay_what_they_were():
    """Every result names problems by regime, length and seed alone."""
    text = hashlib.sha256()
    for regime in REGIMES:
        for length in (1, 2, 3, 5, 20, 46, 92, 230, 265):
            for seed in range(20):
                problem = make_problem(regime, length, seed, seed + 1)
                text.update((problem.prompt + problem.chain + problem.answer).encode())
    assert text.hexdigest().startswith("a6febeb7e835bec8832c852464870761")


@pytest.mark.parametrize("seed", range(10))
def test_a_fact_is_stated_once_and_used_once_much_later(seed):
    lines = lines_of(make_problem("stated_once", 92, seed, seed))
    uses = [own - NUM_INPUTS for own, a, _, b in lines if NUM_INPUTS in (a, b)]
    assert uses == [round(FACT_SHARE * 92)]


@pytest.mark.parametrize("seed", range(10))
def test_silent_lemmas_are_used_in_every_late_line_and_in_no_other(seed):
    lines = lines_of(make_problem("silent", 92, seed, seed))
    lemmas = set(range(NUM_INPUTS, NUM_INPUTS + SILENT_LEMMAS))
    uses = [own - NUM_INPUTS for own, a, _, b in lines if lemmas & {a, b}]
    assert uses == list(range(round(SILENT_SHARE * 92), 92))


@pytest.mark.parametrize("seed", range(10))
def test_a_restatement_has_the_value_of_what_it_restates(seed):
    problem = make_problem("restated", 92, seed, seed)
    lines = lines_of(problem)
    chain = [line.split() for line in problem.chain.split(" ; ")[:92]]
    values = {int(own[1:]): value for own, value in (words[-2:] for words in chain)}
    first = min(values) - NUM_INPUTS
    checks = 0
    for before, line in pairwise(lines):
        _, lemma, sign, x = before
        if (sign, *line[1:]) == ("+", before[0], "-", x) and lemma >= NUM_INPUTS:
            checks += 1
            assert values[first + line[0]] == values[first + lemma]
    assert checks >= 5


@pytest.mark.parametrize("regime", NEW)
def test_other_lines_use_what_is_near(regime):
    """Without the few far uses a regime is `milestone`: sections of at most 40 lines."""
    for own, a, _, b in lines_of(make_problem(regime, 92, 1, 1)):
        near = max(a, b)
        assert near < NUM_INPUTS or own - near <= RECENT_LINES + 3


def test_an_unknown_regime_is_refused():
    with pytest.raises(ValueError, match="stated_once"):
        make_problem("stated", 5, 0, 0)
