"""Listens to a trace stream: an iterator of messages, and the lines of `raas_sglang trace`."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec
import numpy as np
import zmq

from raas_sglang.trace.message import TOPIC, PageTable, PageTrace, TraceBatch, page_table, reused


class Received(NamedTuple):
    """A message and its number, which counts the samples of its rank."""

    sequence: int
    batch: TraceBatch


def listen(endpoints: Iterable[str], timeout_s: float | None = None) -> Iterator[Received]:
    """Yields what servers publish from now on.

    Args:
        endpoints: ``tcp://HOST:PORT`` of each rank to listen to.
        timeout_s: Ends after so many seconds without a message; None waits for ever.

    Raises:
        RuntimeError: an endpoint is not one.
        msgspec.ValidationError: a message is of another schema.
    """
    decoder = msgspec.msgpack.Decoder(TraceBatch)
    socket: zmq.Socket[bytes]
    with zmq.Context.instance().socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.subscribe(TOPIC)
        for endpoint in endpoints:
            try:
                socket.connect(endpoint)
            except zmq.ZMQError as error:
                raise RuntimeError(
                    f"the endpoint must be tcp://HOST:PORT of a server, got {endpoint}: {error}"
                ) from error
        while socket.poll(None if timeout_s is None else int(timeout_s * 1000)):
            _, sequence, payload = socket.recv_multipart()
            yield Received(int.from_bytes(sequence, "big"), decoder.decode(payload))


def lines(messages: Iterable[Received]) -> Iterator[str]:
    """Says of every request in every message what changed since its sample before.

    Args:
        messages: From `listen`.
    """
    before: dict[tuple[str, int], PageTable] = {}
    for sequence, batch in messages:
        for event in batch.events:
            key, table = (event.rid, batch.tp_rank), page_table(event)
            yield f"{sequence:>6} dp{batch.attn_dp_rank} tp{batch.tp_rank} " + _line(
                event, table, before.get(key)
            )
            before[key] = table


def _line(event: PageTrace, table: PageTable, before: PageTable | None) -> str:
    given_up = "-" if before is None else f"{reused(before, table).mean():.0%}"
    return (
        f"{event.rid[:12]:<12} {event.policy:<6} step {event.step:>6} "
        f"resident {event.resident_len} of {event.logical_len} pages {event.shape[2]} "
        f"reused {given_up} {_importance(event, table)}"
    )


def _importance(event: PageTrace, table: PageTable) -> str:
    """What the rule goes by: mass where there is any, else timestamps."""
    if not table.mass.any():
        stamped = (table.stamps == event.step).mean()
        return f"stamped {stamped:.0%} oldest {event.step - table.stamps.min()} steps"
    heaviest_first = np.sort(table.mass, axis=-1)[..., ::-1].cumsum(axis=-1)
    needed = 1 + (heaviest_first < heaviest_first[..., -1:] / 2).sum(axis=-1)
    return f"half of the mass in {needed.mean() / table.mass.shape[-1]:.0%}"
