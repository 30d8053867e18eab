"""The ZMQ side of the trace stream: a thread that waits for samples, packs and sends them."""

import queue
import threading
from collections.abc import Callable

import msgspec
import zmq

from raas_sglang.trace.message import TOPIC, TraceBatch

# Messages that a slow subscriber may lag behind; further ones are lost to it, not to the others.
_HIGH_WATER_MARK = 1000


class TracePublisher:
    """Sends samples in order from a thread of its own; nobody else waits for the socket.

    Args:
        endpoint: ``tcp://ADDRESS:PORT``, bound here.

    Raises:
        RuntimeError: the endpoint cannot be bound.
    """

    def __init__(self, endpoint: str) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUB)
        self._socket.set_hwm(_HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise RuntimeError(
                f"--kv-trace-endpoint must be free to bind, got {endpoint}: {error}; choose "
                "another port; a server takes one for each of its ranks"
            ) from error
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
            frames = (TOPIC, sequence.to_bytes(8, "big"), encoder.encode(sample()))
            self._socket.send_multipart(frames)
        self._socket.close()
