"""What SGLang logs about its decode batches: what its pool holds, how fast it is, who gave way."""

import re
from typing import NamedTuple

# A line that is still being written lacks its last field.
_LINE = re.compile(r"Decode batch, (.*#queue-req: \d+.*)")
_RETRACTED = re.compile(r"Retract requests\. #retracted_reqs: (\d+)")


class DecodeBatch(NamedTuple):
    """One line about a decode batch; SGLang writes one every `--decode-log-interval` steps.

    Attributes:
        running: Requests in the batch.
        queued: Requests that wait.
        pool_tokens: Tokens of the pool that requests hold, as SGLang counts them.
        logical_tokens: Tokens of their texts; None where the plugin is off.
        tokens_per_s: Tokens generated since the line before, by the time since then.
        is_graph: Whether the batch ran as a CUDA graph.
    """

    running: int
    queued: int
    pool_tokens: int
    logical_tokens: int | None
    tokens_per_s: float
    is_graph: bool

    @property
    def step_ms(self) -> float:
        """Milliseconds of a step, if the batch was the same since the line before."""
        return 1000 * self.running / self.tokens_per_s


def decode_batches(log: str) -> list[DecodeBatch]:
    """Reads every line about a decode batch.

    Args:
        log: A server's output, or a part of it.
    """
    return [_decode_batch(match[1]) for match in _LINE.finditer(log)]


def retractions(log: str) -> int:
    """How many requests SGLang retracted for lack of memory."""
    return sum(map(int, _RETRACTED.findall(log)))


def _decode_batch(line: str) -> DecodeBatch:
    fields = dict(part.split(": ", 1) for part in line.split(", "))
    logical = fields.get("#logical token")
    (graph,) = (value for name, value in fields.items() if name.endswith(" graph"))
    return DecodeBatch(
        running=int(fields["#running-req"]),
        queued=int(fields["#queue-req"]),
        pool_tokens=int(fields["#token"]),
        logical_tokens=None if logical is None else int(logical),
        tokens_per_s=float(fields["gen throughput (token/s)"]),
        is_graph=graph == "True",
    )
