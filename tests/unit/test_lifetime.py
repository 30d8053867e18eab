"""Lives of pages out of the samples of a trace stream."""

import numpy as np

from accuracy.lifetime import Lifetime, as_row, lifetimes, of_row
from raas_sglang.trace import PageTrace


def sample(step, births, stamps, current):
    """One layer, one head."""
    arrays = [np.array(values, "<i4").tobytes() for values in (stamps, births, [current])]
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


def test_samples_may_be_missing():
    (first, *_) = lifetimes(SAMPLES[:2] + SAMPLES[3:])
    assert first == Lifetime(0, 0, 0, 4, [[3, 3]])


def test_rows_keep_them():
    lives = lifetimes(SAMPLES)
    assert of_row(as_row(lives)) == lives
