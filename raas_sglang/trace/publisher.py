"""The ZMQ side of the trace stream: a thread that waits for samples, packs and sends them."""

import ipaddress
import logging
import queue
import threading
from collections.abc import Callable, Sequence

import msgspec
import zmq
from msgspec.structs import replace

from raas_sglang.trace.message import TOPIC, TraceBatch

logger = logging.getLogger(__name__)

# What may be on its way, and the most messages of it to one subscriber. A slow one may take half of
# the bytes, so that the others have theirs.
_MOST_BYTES, _MOST_MESSAGES = 1 << 30, 1000


class TracePublisher:
    """Sends samples in order from a thread of its own; nobody else waits for the socket.

    Args:
        endpoint: ``tcp://ADDRESS:PORT``, bound here.
        tables: Bytes of the largest token tables of a message; its texts come on top.

    Raises:
        RuntimeError: the endpoint cannot be bound.
    """

    def __init__(self, endpoint: str, tables: int = 1) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUB)
        self._socket.set_hwm(max(2, min(_MOST_MESSAGES, _MOST_BYTES // 2 // tables)))
        # A copy would not be counted.
        self._socket.copy_threshold = 0  # type: ignore[assignment]
        self._on_way: list[tuple[zmq.MessageTracker, int]] = []
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise RuntimeError(
                f"--kv-trace-endpoint must be free to bind, got {endpoint}: {error}; choose "
                "another port; a server takes one for each of its ranks"
            ) from error
        if not _is_loopback(endpoint):
            logger.warning(
                "--kv-trace-endpoint %s is open to everyone who reaches the port: the stream holds "
                "the text of every request, without a password and without encryption. Use "
                "tcp://127.0.0.1:PORT, or let a firewall keep others away.",
                endpoint,
            )
        self._samples: queue.SimpleQueue[tuple[int, Callable[[], TraceBatch]] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._run, name="kv-trace", daemon=True)
        self._thread.start()

    def publish(self, sequence: int, sample: Callable[[], TraceBatch]) -> None:
        """Hands a sample over and returns at once.

        Args:
            sequence: Its number; one that was left out must have had a number too.
            sample: Returns the message; called in the thread, where it may wait for the device.
        """
        self._samples.put((sequence, sample))

    def close(self) -> None:
        """Sends what was handed over and closes the socket."""
        self._samples.put(None)
        self._thread.join()

    def _run(self) -> None:
        encoder = msgspec.msgpack.Encoder()
        while (item := self._samples.get()) is not None:
            sequence, sample = item
            batch = sample()
            tables = [table for event in batch.events for table in (event.births, event.weights)]
            events = [replace(event, births=b"", weights=b"") for event in batch.events]
            head = encoder.encode(replace(batch, events=events))
            frames = (TOPIC, sequence.to_bytes(8, "big"), head, *tables)
            self._send(frames)
        self._socket.close()

    def _send(self, frames: Sequence[bytes]) -> None:
        """Sends a message, or leaves it out if too much is on its way already."""
        self._on_way = [item for item in self._on_way if not item[0].done]
        size = sum(memoryview(frame).nbytes for frame in frames)
        if self._on_way and size + sum(waiting for _, waiting in self._on_way) > _MOST_BYTES:
            return
        tracker = self._socket.send_multipart(frames, copy=False, track=True)
        assert tracker is not None, "asked for"
        self._on_way.append((tracker, size))


def _is_loopback(endpoint: str) -> bool:
    address = endpoint.removeprefix("tcp://").rpartition(":")[0]
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
