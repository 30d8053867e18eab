"""What the trace stream says: its schema, and arrays out of it.

A message begins with three frames, as SGLang's KV events have: the topic, a sequence number (8
bytes, big endian) and a `TraceBatch` in MessagePack. Two more follow for each of its events, the
births and the weights, which are empty in the `TraceBatch`: so large tables are sent from where
they are, and nobody waits for a copy of all of them at once. A gap in the sequence is a sample that
was left out because the one before was still on its way, or a message that a slow subscriber lost.
Letters in shapes: ``Y`` layers and ``H`` KV heads of one rank, ``K`` generated tokens that the
request holds.
"""

from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

TOPIC = b"kv-trace"
BIRTH_DTYPE = np.dtype("<i4")
WEIGHT_DTYPE = np.dtype("<f4")
TOKEN_DTYPE = np.dtype("<i4")


class TokenTrace(msgspec.Struct, array_like=True, gc=False, tag=True, frozen=True):
    """The tokens of one request after one decode step.

    Steps are counted by request: the step that stores its generated token i (from 0) is step i. A
    place that was reused has another birth than before.

    Attributes:
        rid: SGLang's name of the request.
        policy: Name of its policy.
        budget: L, in tokens.
        prompt_len: P, in tokens.
        logical_len: Tokens of the text with this step's.
        resident_len: Slots that it holds.
        shape: Y, H, K.
        births: [Y, H, K] int32, little endian. Generated token that each place holds.
        weights: [Y, H, K] float32, little endian. What the policy knows of it; 0 at its birth.
            raas: its importance when it was scored last, a logarithm; raas-paper: its timestamp;
            h2o: the attention probability that it has gathered; others: nothing.
    """

    rid: str
    policy: str
    budget: int
    prompt_len: int
    logical_len: int
    resident_len: int
    shape: tuple[int, int, int]
    births: bytes
    weights: bytes

    @property
    def step(self) -> int:
        """The step after which the sample was taken."""
        return self.logical_len - self.prompt_len - 1


class RequestTrace(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """How far one request has come, and its text; also of a request that gives nothing up.

    The token at position p of the text is generated token p - P, as `TokenTrace` counts them.

    Attributes:
        rid: SGLang's name of the request.
        policy: Name of its policy.
        budget: L, in tokens; None if it keeps every token.
        prompt_len: P, in tokens.
        logical_len: Tokens of the text that were computed.
        resident_len: Slots that it holds.
        token_ids: [*] int32, little endian. The text, prompt first, as far as the host knows it:
            at most two tokens less than ``logical_len``, or one more.
        finished: Why it has ended (``stop``, ``length``, ``abort``); None while it runs.
    """

    rid: str
    policy: str
    budget: int | None
    prompt_len: int
    logical_len: int
    resident_len: int
    token_ids: bytes
    finished: str | None = None


class TraceBatch(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """A decode batch after one step, or requests that have ended, on one rank.

    Attributes:
        ts: Seconds since the epoch at which the step was launched, or the end was known.
        events: One entry for each evicting request; none if the message tells of ends.
        attn_dp_rank: Replica of the model, 0 without data parallelism.
        tp_rank: Rank among those that share the KV heads.
        requests: One entry for each request, evicting or not; from rank 0 of each replica alone,
            since they are the same on all.
        server: A random number of the process that sends it, another one after each start.
    """

    ts: float
    events: list[TokenTrace]
    attn_dp_rank: int
    tp_rank: int
    requests: list[RequestTrace] = []
    server: int = 0


class TokenTable(NamedTuple):
    """The arrays of a `TokenTrace`.

    Attributes:
        births: [Y, H, K] int32.
        weights: [Y, H, K] float32.
    """

    births: NDArray[np.int32]
    weights: NDArray[np.float32]


def token_table(event: TokenTrace) -> TokenTable:
    """Reads the arrays of an event; they are read-only views of its bytes.

    Raises:
        ValueError: the bytes do not fill the event's shape.
    """
    return TokenTable(
        np.frombuffer(event.births, BIRTH_DTYPE).reshape(event.shape),
        np.frombuffer(event.weights, WEIGHT_DTYPE).reshape(event.shape),
    )


def reused(before: TokenTable, after: TokenTable) -> NDArray[np.bool_]:
    """Places whose token was given up between two samples of one request.

    Args:
        before: The earlier sample, K tokens.
        after: The later one, K tokens or more.

    Returns:
        [Y, H, K] of the earlier sample.
    """
    changed: NDArray[np.bool_] = after.births[..., : before.births.shape[2]] != before.births
    return changed
