"""Listens to a trace stream: an iterator of messages, and the lines of `raas_sglang trace`."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import NamedTuple, cast

import msgspec
import numpy as np
import zmq
from msgspec.structs import replace

from raas_sglang.trace.message import TOPIC, TokenTrace, TraceBatch, reused, token_table

# Messages of up to tens of megabytes that may wait here; the server bounds those that wait there.
_MOST_MESSAGES = 16


class Received(NamedTuple):
    """A message and its number, which counts the messages of its rank."""

    sequence: int
    batch: TraceBatch


class Subscription:
    """Listens to endpoints, which may become others.

    Args:
        endpoints: ``tcp://HOST:PORT`` of each rank to listen to.

    Raises:
        RuntimeError: an endpoint is not one.
    """

    def __init__(self, endpoints: Iterable[str] = ()) -> None:
        self._decoder = msgspec.msgpack.Decoder(TraceBatch)
        self._connected: set[str] = set()
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.set_hwm(_MOST_MESSAGES)
        self._socket.subscribe(TOPIC)
        try:
            self.connect(endpoints)
        except RuntimeError:
            self.close()
            raise

    def connect(self, endpoints: Iterable[str]) -> None:
        """Listens to these endpoints from now on, and to no others.

        Raises:
            RuntimeError: an endpoint is not one.
        """
        wanted = set(endpoints)
        for endpoint in self._connected - wanted:
            self._socket.disconnect(endpoint)
            self._connected.remove(endpoint)
        for endpoint in wanted - self._connected:
            try:
                self._socket.connect(endpoint)
            except zmq.ZMQError as error:
                raise RuntimeError(
                    f"the endpoint must be tcp://HOST:PORT of a server, got {endpoint}: {error}"
                ) from error
            self._connected.add(endpoint)

    def receive(self, timeout_s: float | None = None) -> Received | None:
        """Waits for a message; returns None after so many seconds without one.

        Raises:
            msgspec.ValidationError: a message is of another schema.
        """
        if not self._socket.poll(None if timeout_s is None else int(timeout_s * 1000)):
            return None
        _, *frames = self._socket.recv_multipart(copy=False)
        if len(frames) < 2:
            raise msgspec.ValidationError(
                f"a message must have three frames, got {1 + len(frames)}"
            )
        sequence, head, *tables = frames
        batch = _with_tables(self._decoder.decode(head.buffer), tables)
        return Received(int.from_bytes(sequence.buffer, "big"), batch)

    def close(self) -> None:
        """Listens no more."""
        self._socket.close()


def listen(endpoints: Iterable[str], timeout_s: float | None = None) -> Iterator[Received]:
    """Yields what servers publish from now on.

    Args:
        endpoints: ``tcp://HOST:PORT`` of each rank to listen to.
        timeout_s: Ends after so many seconds without a message; None waits for ever.

    Raises:
        RuntimeError: an endpoint is not one.
        msgspec.ValidationError: a message is of another schema.
    """
    with closing(Subscription(endpoints)) as subscription:
        while (message := subscription.receive(timeout_s)) is not None:
            yield message


def _with_tables(batch: TraceBatch, tables: list[zmq.Frame]) -> TraceBatch:
    if len(tables) != 2 * len(batch.events):
        raise msgspec.ValidationError(
            f"a message with {len(batch.events)} events must have two tables for each, got "
            f"{len(tables)}; run the server and its subscriber with the same version"
        )
    views = [cast("bytes", table.buffer) for table in tables]
    pairs = zip(batch.events, views[::2], views[1::2], strict=True)
    events = [replace(event, births=births, weights=weights) for event, births, weights in pairs]
    return replace(batch, events=events)


def lines(messages: Iterable[Received]) -> Iterator[str]:
    """Says of every request in every message what changed since its sample before.

    Args:
        messages: From `listen`.
    """
    seen: dict[tuple[int, int], dict[str, TokenTrace]] = {}
    for sequence, batch in messages:
        if not batch.events:
            continue
        rank = batch.attn_dp_rank, batch.tp_rank
        before = seen.get(rank, {})
        for event in batch.events:
            line = _line(event, before.get(event.rid))
            yield f"{sequence:>6} dp{rank[0]} tp{rank[1]} {line}"
        # A request that is no longer in the batch has ended, or begins anew.
        seen[rank] = {event.rid: event for event in batch.events}


def _named(event: TokenTrace) -> tuple[str, int, int]:
    return event.policy, event.budget, event.prompt_len


def _line(event: TokenTrace, before: TokenTrace | None) -> str:
    table, given_up = token_table(event), "-"
    # A client may use the name of a request again.
    if before is not None and before.step <= event.step and _named(before) == _named(event):
        given_up = f"{reused(token_table(before), table).mean():.0%}"
    ages = event.step - table.births
    return (
        f"{event.rid[:12]:<12} {event.policy:<10} step {event.step:>6} "
        f"resident {event.resident_len} of {event.logical_len} given up {given_up} "
        f"oldest {ages.max()} median age {int(np.median(ages))}"
    )
