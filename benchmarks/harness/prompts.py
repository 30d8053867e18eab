"""Random prompts, as token ids; no two of them share a prefix worth speaking of."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

FIRST_ID = 16  # those before it mean something in most vocabularies


class Prompts:
    """Texts of a model's vocabulary.

    Args:
        model_path: Folder with the model's `config.json`.
        seed: The same gives the same texts.
    """

    def __init__(self, model_path: Path, seed: int) -> None:
        self._size = json.loads((model_path / "config.json").read_text())["vocab_size"]
        self._seed = seed
        self._fresh = 0

    def text(self, index: int, length: int) -> list[int]:
        """The first tokens of the text with this index, whenever it is asked for."""
        return self._draw([self._seed, 0, index], length)

    def batch(self, lengths: Sequence[int]) -> list[list[int]]:
        """A text of each length."""
        return [self.text(index, length) for index, length in enumerate(lengths)]

    def fresh(self, length: int) -> list[int]:
        """A text that was never used before."""
        self._fresh += 1
        return self._draw([self._seed, 1, self._fresh], length)

    def _draw(self, seed: list[int], length: int) -> list[int]:
        return np.random.default_rng(seed).integers(FIRST_ID, self._size, length).tolist()
