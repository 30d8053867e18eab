"""The picture of what a request holds of its answer."""

import numpy as np

from examples.demo.kept_words import Word, held_shares, picture, words


def test_the_picture_hides_what_most_heads_gave_up():
    text = ["Bread", " is", " bak", "ed", ".", "\n\n", "E", "nd"]
    births = np.array([[[0, 3, 6], [0, 1, 6]], [[2, 3, 6], [3, 4, 7]]], np.int32)
    shares = held_shares(births, len(text))
    np.testing.assert_array_equal(shares, [0.5, 0.25, 0.25, 0.75, 0.25, 0, 0.75, 0.25])
    answer = words(range(len(text)), shares, lambda ids: "".join(text[i] for i in ids))
    assert answer[:3] == [Word("Bread", 0.5), Word(" is", 0.25), Word(" baked.", 1.25 / 3)]
    assert picture(answer, 80) == ["  39% | Bread ·· ······", "  50% | End"]
    assert picture(answer, 16) == ["  38% | Bread ··", "  42% | ······", "  50% | End"]
