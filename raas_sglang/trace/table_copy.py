"""Token tables on their way to the host, without a wait.

They are gathered on the stream that computed them, so in order with the steps, and copied to pinned
memory on another. There are two buffers; while both are on their way, nothing is copied.
"""

import queue
from typing import NamedTuple

import torch

from raas_kernels import EvictionBuffers

_BUFFERS = 2


class TableCopy(NamedTuple):
    """Token tables of a batch on their way to the host.

    Attributes:
        source: What is copied; must live until it has arrived.
        host: The buffer that it is copied to.
        births: [Y, B, H, K] int32, on the host.
        weights: [Y, B, H, K] float32, on the host.
        done: Recorded behind the copy; None where it has arrived already.
    """

    source: torch.Tensor
    host: torch.Tensor
    births: torch.Tensor
    weights: torch.Tensor
    done: torch.cuda.Event | None

    def wait(self) -> None:
        """Waits until it has arrived."""
        if self.done is not None:
            self.done.synchronize()


class TableCopier:
    """Copies token tables.

    Args:
        buffers: Eviction state of all layers.
    """

    def __init__(self, buffers: EvictionBuffers) -> None:
        self.buffers = buffers
        device = buffers.births.device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._free: queue.SimpleQueue[torch.Tensor] = queue.SimpleQueue()
        size = 2 * buffers.births.numel()
        for _ in range(_BUFFERS):
            pinned = self._stream is not None
            self._free.put(torch.empty(size, dtype=torch.int32, pin_memory=pinned))

    def start(self, req_pool_indices: torch.Tensor, tokens: int) -> TableCopy | None:
        """Starts the copy of a batch's tables; call it on the stream that decoded the batch.

        Args:
            req_pool_indices: [B] int64 request slots, on the device of the eviction state.
            tokens: K, generated tokens of each row.

        Returns:
            The copy, to be given back to `release`; None while both buffers are on their way.
        """
        try:
            host = self._free.get_nowait()
        except queue.Empty:
            return None
        tables = [
            self.buffers.births[..., :tokens].index_select(1, req_pool_indices),
            # Its bits as int32, so that both tables share one buffer and one copy.
            self.buffers.weights.view(torch.int32)[..., :tokens].index_select(1, req_pool_indices),
        ]
        source = torch.cat([table.flatten() for table in tables])
        target = host[: len(source)]
        parts = torch.split(target, [table.numel() for table in tables])
        births, weights = (
            part.view(table.shape) for part, table in zip(parts, tables, strict=True)
        )
        done = self._copy(source, target)
        return TableCopy(source, host, births, weights.view(torch.float32), done)

    def release(self, copy: TableCopy) -> None:
        """Lets the next copy have the buffer of one that has been read."""
        self._free.put(copy.host)

    def _copy(self, source: torch.Tensor, target: torch.Tensor) -> torch.cuda.Event | None:
        if self._stream is None:
            target.copy_(source)
            return None
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        return done
