"""The words of the page: texts of tokens, out of a tokenizer that knows whole texts alone."""

import urllib.error

from raas_sglang.view.words import Dictionary

TEXTS = {1: "a", 2: " b", 3: "\ufffd", 4: "\ufffd"}


def decode(lists):
    """Drops the first space, has a character of two tokens, and knows five tokens."""
    found = []
    for ids in lists:
        if any(token > 5 for token in ids):
            raise urllib.error.HTTPError("", 400, "", {}, None)
        text = "".join(TEXTS.get(token, "?") for token in ids).replace("\ufffd\ufffd", "é")
        found.append(text.removeprefix(" "))
    return found


def learned_words(token_ids):
    """The words, once the dictionary has learned all that there is to learn."""
    dictionary = Dictionary(decode)
    for _ in range(1000):
        if len(found := dictionary.words(token_ids, 0)) == len(token_ids):
            return found
        with dictionary._lock:
            dictionary._lock.wait(0.01)
    raise AssertionError(found)


def test_words_are_as_they_stand_in_the_text():
    assert learned_words([1, 2, 3, 4, 1]) == ["a", " b", "é", "", "a"]


def test_a_token_beyond_the_vocabulary_shows_its_number():
    assert learned_words([1, 999_999, 2]) == ["a", "⟨999999⟩", " b"]
