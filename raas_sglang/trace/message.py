"""What the trace stream says: its schema, and arrays out of it.

A message has three frames, as SGLang's KV events have: the topic, a sequence number (8 bytes, big
endian) and a `TraceBatch` in MessagePack. A gap in the sequence is a sample that was left out
because the one before was still on its way. Letters in shapes: ``Y`` layers and ``H`` KV heads of
one rank, ``N`` pages of the request that were born.
"""

from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

TOPIC = b"kv-trace"
PAGE_DTYPE = np.dtype("<i4")
MASS_DTYPE = np.dtype("<f4")


class PageTrace(msgspec.Struct, array_like=True, gc=False, tag=True, frozen=True):
    """The pages of one request after one decode step.

    Steps are counted by request: the step that stores its generated token i (from 0) is step i, and
    stamps and births are such steps. A page that was reused has another birth than before, and a
    page was stamped since step s if its stamp is above s.

    Attributes:
        rid: SGLang's name of the request.
        policy: Name of its policy.
        budget: L, in tokens.
        prompt_len: P, in tokens.
        logical_len: Tokens of the text with this step's.
        resident_len: Slots that it holds.
        shape: Y, H, N.
        stamps: [Y, H, N] int32, little endian. Last step at which each page was important; with
            `--kv-stamp-rule lrfu`, and of other policies than raas, that of its last token.
        births: [Y, H, N] int32, little endian. Step at which its first token was written.
        mass: [Y, H, N] float32, little endian. What each page has gathered: with
            `--kv-stamp-rule lrfu` the faded sum of its shares as of the last steps that were
            scored, with h2o the sum of its probabilities; zero under any other rule.
        current: [Y, H] int32, little endian. The page being filled.
    """

    rid: str
    policy: str
    budget: int
    prompt_len: int
    logical_len: int
    resident_len: int
    shape: tuple[int, int, int]
    stamps: bytes
    births: bytes
    mass: bytes
    current: bytes

    @property
    def step(self) -> int:
        """The step after which the sample was taken."""
        return self.logical_len - self.prompt_len - 1


class TraceBatch(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """The evicting requests of one decode batch, on one rank.

    Attributes:
        ts: Seconds since the epoch at which the step was launched.
        events: One entry for each evicting request.
        attn_dp_rank: Replica of the model, 0 without data parallelism.
        tp_rank: Rank among those that share the KV heads.
        page_size: Tokens of an eviction page.
    """

    ts: float
    events: list[PageTrace]
    attn_dp_rank: int
    tp_rank: int
    page_size: int


class PageTable(NamedTuple):
    """The arrays of a `PageTrace`.

    Attributes:
        stamps: [Y, H, N] int32.
        births: [Y, H, N] int32.
        mass: [Y, H, N] float32.
        current: [Y, H] int32.
    """

    stamps: NDArray[np.int32]
    births: NDArray[np.int32]
    mass: NDArray[np.float32]
    current: NDArray[np.int32]


def page_table(event: PageTrace) -> PageTable:
    """Reads the arrays of an event; they are read-only views of its bytes.

    Raises:
        ValueError: the bytes do not fill the event's shape.
    """
    layers, heads, _ = event.shape
    return PageTable(
        np.frombuffer(event.stamps, PAGE_DTYPE).reshape(event.shape),
        np.frombuffer(event.births, PAGE_DTYPE).reshape(event.shape),
        np.frombuffer(event.mass, MASS_DTYPE).reshape(event.shape),
        np.frombuffer(event.current, PAGE_DTYPE).reshape(layers, heads),
    )


def reused(before: PageTable, after: PageTable) -> NDArray[np.bool_]:
    """Pages that were given up and began a new life between two samples of one request.

    Args:
        before: The earlier sample, N pages.
        after: The later one, N pages or more.

    Returns:
        [Y, H, N] of the earlier sample.
    """
    changed: NDArray[np.bool_] = after.births[..., : before.births.shape[2]] != before.births
    return changed
