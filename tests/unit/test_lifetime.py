"""Lives of tokens out of the samples of a trace stream."""

import numpy as np

from accuracy.lifetime import Lifetime, as_row, lifetimes, of_row
from raas_sglang.trace import TokenTrace


def sample(step, births):
    """One layer, one head."""
    arrays = [np.array(births, "<i4").tobytes(), np.zeros(len(births), "<f4").tobytes()]
    shape, lens = (1, 1, len(births)), (5, 5 + step + 1, 5 + len(births))
    return TokenTrace("r", "raas", 2, *lens, shape, *arrays)


SAMPLES = [sample(0, [0]), sample(1, [0, 1]), sample(2, [2, 1]), sample(3, [2, 3])]


def test_lives_end_where_another_token_begins():
    assert lifetimes(SAMPLES) == [
        Lifetime(0, 0, 0, 2),
        Lifetime(0, 0, 1, 3),
        Lifetime(0, 0, 2, None),
        Lifetime(0, 0, 3, None),
    ]


def test_samples_may_be_missing():
    assert lifetimes([SAMPLES[1], SAMPLES[3]])[:2] == [Lifetime(0, 0, 0, 3), Lifetime(0, 0, 1, 3)]


def test_rows_keep_them():
    lives = lifetimes(SAMPLES)
    assert of_row(as_row(lives)) == lives
