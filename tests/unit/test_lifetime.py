"""Lives of pages out of the samples of a trace stream."""

import numpy as np

from accuracy.lifetime import Lifetime, as_row, lifetimes, of_row
from raas_sglang.trace import PageTrace


def sample(step, births, stamps, current, mass=None):
    """One layer, one head."""
    arrays = [np.array(values, "<i4").tobytes() for values in (stamps, births, [current])]
    arrays.insert(2, np.array(mass or [0] * len(births), "<f4").tobytes())
    shape = 1, 1, len(births)
    return PageTrace("r", "raas", 32, 5, 5 + step + 1, 5 + step + 1, shape, *arrays)


SAMPLES = [
    sample(0, [0], [0], 0),
    sample(1, [0], [1], 0),  # being filled: no use that counts
    sample(2, [0, 2], [2, 2], 1),
    sample(3, [0, 2], [3, 3], 1),
    sample(4, [4, 2], [4, 4], 0),  # page 0 is given up
    sample(5, [4, 2], [5, 4], 0),
    sample(6, [4, 2], [5, 6], 0),
]


def test_lives_end_where_another_page_begins():
    assert lifetimes(SAMPLES) == [
        Lifetime(0, 0, 0, 4, [[2, 3]]),
        Lifetime(0, 0, 2, None, [[4, 4], [6, 6]]),
        Lifetime(0, 0, 4, None, []),
    ]


def test_a_page_is_used_where_its_mass_grows():
    masses = ([0.0, 0.0], [0.5, 0.0], [0.4, 0.25], [0.6, 0.5], [0.5, 0.75])
    samples = [sample(4 + i, [0, 2], [1, 3], 1, mass) for i, mass in enumerate(masses)]
    assert lifetimes(samples) == [
        Lifetime(0, 0, 0, None, [[5, 5], [7, 7]]),
        Lifetime(0, 0, 2, None, []),  # being filled
    ]


def test_samples_may_be_missing():
    (first, *_) = lifetimes(SAMPLES[:2] + SAMPLES[3:])
    assert first == Lifetime(0, 0, 0, 4, [[3, 3]])


def test_rows_keep_them():
    lives = lifetimes(SAMPLES)
    assert of_row(as_row(lives)) == lives
