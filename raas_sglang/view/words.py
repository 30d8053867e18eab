"""Texts of tokens, as the server's tokenizer has them."""

import threading
import time
import urllib.error
from collections.abc import Callable, Sequence

from raas_sglang.view.record import Words

Ids = tuple[int, ...]
Detokenize = Callable[[Sequence[Ids]], list[str]]
# What a tokenizer makes of bytes that are no character by themselves.
_BROKEN = "\ufffd"
# Tokens that are asked for at a time, and the most that together are looked at as one character.
_AT_ONCE, _MOST_TOGETHER = 256, 16
_PATIENCE_S = 1.0
# HTTP codes with which SGLang answers ids that are no tokens; one of them is that of any fault too.
_ANY_FAULT = 500
_NO_TOKEN = (400, 422, _ANY_FAULT)


class Dictionary:
    """Knows texts of tokens, and asks for those that it does not know, in a thread of its own.

    Args:
        detokenize: As of `WatchedServer`. None: nobody can be asked.
        learned: Told of new texts, in the thread.

    Attributes:
        tokenizer: Whose texts these are; empty as long as that is not known.
    """

    def __init__(
        self,
        detokenize: Detokenize | None = None,
        learned: Callable[[Words], None] = lambda words: None,
    ) -> None:
        self._texts: dict[Ids, str] = {}
        self._wanted: dict[Ids, None] = {}  # in order
        self._lock = threading.Condition()
        self._detokenize, self._learned = detokenize, learned
        self._doubted: set[Ids] = set()
        self.tokenizer = ""
        if detokenize is not None:
            threading.Thread(target=self._run, name="detokenize", daemon=True).start()

    def take(self, words: Words) -> None:
        """Notes texts."""
        with self._lock:
            self.tokenizer = words.tokenizer or self.tokenizer
            self._texts.update(words.texts)
            for ids, _ in words.texts:
                self._wanted.pop(ids, None)

    def want(self, token_ids: Sequence[int]) -> None:
        """Asks for the texts of single tokens that are not known."""
        with self._lock:
            self._want({(token,) for token in token_ids})

    def words(self, token_ids: Sequence[int], start: int) -> list[str]:
        """The texts of tokens from a position on, up to the first that is not known yet.

        Tokens that only together are a character: the first has it, the others are empty.
        """
        found: list[str] = []
        with self._lock:
            place = start
            while place < len(token_ids):
                text = self._text((token_ids[place],))
                if text is None:
                    break
                end = place + 1
                if _BROKEN in text:
                    while end < min(len(token_ids), place + _MOST_TOGETHER) and _BROKEN in (
                        self._texts.get((token_ids[end],)) or ""
                    ):
                        end += 1
                    text = self._text(tuple(token_ids[place:end]))
                    if text is None:
                        break
                found += [text, *[""] * (end - place - 1)]
                place = end
        return found

    def _text(self, ids: Ids) -> str | None:
        text = self._texts.get(ids)
        if text is None and self._detokenize is None:
            return f"⟨{ids[0]}⟩"
        if text is None:
            self._want({ids})
        return text

    def _want(self, asked: set[Ids]) -> None:
        new = asked - self._texts.keys() - self._wanted.keys()
        if new:
            self._wanted.update(dict.fromkeys(sorted(new)))
            self._lock.notify()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._wanted)
                asked = list(self._wanted)[:_AT_ONCE]
            try:
                texts = list(zip(asked, self._ask(asked), strict=True))
                words = Words(texts, self.tokenizer)
            except OSError:
                time.sleep(_PATIENCE_S)  # the server may come back
                continue
            self.take(words)
            self._learned(words)

    def _ask(self, asked: list[Ids]) -> list[str]:
        assert self._detokenize is not None, "runs only with it"
        # Some tokenizers drop the space before the first word, so a token is asked for as a second
        # one as well.
        lists = [ids for one in asked for ids in ((one, one + one) if len(one) == 1 else (one,))]
        try:
            texts = iter(self._detokenize(lists))
        except urllib.error.HTTPError as error:
            if error.code not in _NO_TOKEN:
                raise
            if len(asked) > 1:
                half = len(asked) // 2
                return self._ask(asked[:half]) + self._ask(asked[half:])
            if error.code == _ANY_FAULT and asked[0] not in self._doubted:
                self._doubted.add(asked[0])
                raise  # it is asked once more
            return [f"⟨{asked[0][0]}⟩"]  # no token of the vocabulary
        return [next(texts) if len(one) > 1 else _second(next(texts), next(texts)) for one in asked]


def _second(once: str, twice: str) -> str:
    """What the second of two equal tokens adds to the first."""
    return twice[len(once) :] if twice.startswith(once) and _BROKEN not in once else once
