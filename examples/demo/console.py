"""What the demos have in common: a streamed request, and what they print."""

import sys
import time
from collections.abc import Sequence
from threading import Lock
from typing import Any

from benchmarks.harness.streams import stream

TOKEN_COUNTS = ("prompt", "cached", "logical", "resident", "evicted")


class Progress:
    """One line on stderr that counts the generated tokens of all requests."""

    def __init__(self, expected: int) -> None:
        self._expected, self._done, self._lock = expected, 0, Lock()
        self._began = self._shown = time.monotonic()

    def add(self, tokens: int) -> None:
        """Counts tokens, and shows the line about once a second."""
        with self._lock:
            self._done += tokens
            now = time.monotonic()
            if now - self._shown < 1.0:
                return
            self._shown = now
            rate = self._done / (now - self._began)
        say(f"\rgenerated {self._done} of about {self._expected} tokens, {rate:.0f} tokens/s ")

    def generate(self, url: str, prompt: str, params: dict[str, Any]) -> dict[str, Any]:
        """Streams one completion, counts its tokens and returns its last message."""
        last: dict[str, Any] = {}
        seen = 0
        for last in stream(url + "/generate", {"text": prompt, "sampling_params": params}, 3600):
            tokens = last["meta_info"]["completion_tokens"]
            self.add(tokens - seen)
            seen = tokens
        return last


def prefill(url: str, prompt: str) -> None:
    """Leaves a prompt in the radix cache, for the requests that share it."""
    for _ in stream(url + "/generate", {"text": prompt, "sampling_params": {"max_new_tokens": 1}}):
        pass


def print_aligned(rows: Sequence[Sequence[str]]) -> None:
    """Prints rows whose cells are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def say(text: str) -> None:
    """Reports progress, without a line break."""
    print(text, end="", file=sys.stderr, flush=True)
