"""The device side of the trace stream: token tables on their way to the host, without a wait.

The tables of a batch are gathered on the stream that computed them, so in order with the steps, and
copied to pinned memory on another. The publisher's thread waits for the copy. There are two
buffers; if both are still on their way, the sample is left out rather than waited for.
"""

import queue
import time
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from raas_kernels import EvictionBuffers, Policy
from raas_sglang.config import RaasConfig
from raas_sglang.life.options import RequestOptions
from raas_sglang.life.request import RequestState
from raas_sglang.trace.message import (
    BIRTH_DTYPE,
    TOKEN_DTYPE,
    WEIGHT_DTYPE,
    RequestTrace,
    TokenTrace,
    TraceBatch,
)
from raas_sglang.trace.publisher import TracePublisher

_BUFFERS = 2


class TracedRequest(NamedTuple):
    """A running request of SGLang.

    Attributes:
        rid: SGLang's name of it.
        state: Its progress.
        input_ids: What it was sent.
        output_ids: What it has generated; the scheduler goes on to append to it.
    """

    rid: str
    state: RequestState
    input_ids: "array[int]"
    output_ids: "array[int]"


class TracedRow(NamedTuple):
    """A row of the sampled batch as it was at that step; its `RequestState` goes on meanwhile.

    Attributes:
        place: Its row in the batch.
        tokens: K, generated tokens that it holds.
        text: Its token ids, int64. A copy: what another thread views cannot be appended to.
    """

    place: int
    rid: str
    options: RequestOptions
    prompt_len: int
    logical_len: int
    resident_len: int
    tokens: int
    text: bytes


class Copy(NamedTuple):
    """Token tables on their way to the host.

    Attributes:
        source: What is copied; must live until it has arrived.
        births: [Y, B, H, K] int32, on the host.
        weights: [Y, B, H, K] float32, on the host.
        done: Recorded behind the copy; None where it has arrived already.
    """

    source: torch.Tensor
    births: torch.Tensor
    weights: torch.Tensor
    done: torch.cuda.Event | None


class TokenSampler:
    """Samples the token tables of decode batches and gives them to the publisher.

    Args:
        buffers: Eviction state of all layers.
        config: The server's settings.
        publisher: Takes the samples.
        attn_dp_rank: Replica of the model.
        tp_rank: Rank among those that share the KV heads.
    """

    def __init__(
        self,
        buffers: EvictionBuffers,
        config: RaasConfig,
        publisher: TracePublisher,
        attn_dp_rank: int,
        tp_rank: int,
    ) -> None:
        self.buffers = buffers
        self.config = config
        self.publisher = publisher
        self.ranks = (attn_dp_rank, tp_rank)
        device = buffers.births.device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._free: queue.SimpleQueue[torch.Tensor] = queue.SimpleQueue()
        size = 2 * buffers.births.numel()
        for _ in range(_BUFFERS):
            pinned = self._stream is not None
            self._free.put(torch.empty(size, dtype=torch.int32, pin_memory=pinned))
        self._steps = self._messages = 0

    def is_due(self) -> bool:
        """Counts a decode step; whether it is one to sample."""
        due = self._steps % self.config.kv_trace_interval == 0
        self._steps += 1
        return due

    def sample(self, req_pool_indices: torch.Tensor, requests: Sequence[TracedRequest]) -> None:
        """Starts the copy of a batch's token tables; call it on the stream that decoded the batch.

        Args:
            req_pool_indices: [B] int64 request slots, on the device of the eviction state.
            requests: Each row of the batch.
        """
        rows = [
            self._row(place, request)
            for place, request in enumerate(requests)
            if request.state.options.traced
        ]
        evicting = [row for row in rows if row.options.evicts]
        now = time.time()
        if not evicting:
            self._publish_texts(now, rows)
            return
        sequence = self._next_number()
        try:
            host = self._free.get_nowait()
        except queue.Empty:
            return  # the subscriber sees the gap in the sequence
        copy = self._start(req_pool_indices, max(row.tokens for row in evicting), host)

        def message() -> TraceBatch:
            if copy.done is not None:
                copy.done.synchronize()
            events = [_event(row, copy) for row in evicting]
            self._free.put(host)
            return TraceBatch(now, events, *self.ranks, self._texts(rows))

        self.publisher.publish(sequence, message)

    def end(self, request: TracedRequest, reason: str) -> None:
        """Tells that a request has ended, and its whole text.

        Args:
            request: It; what it generated up to its stop.
            reason: SGLang's finish reason.
        """
        if request.state.options.traced:
            self._publish_texts(time.time(), [self._row(0, request)], reason)

    def _publish_texts(
        self, now: float, rows: list[TracedRow], finished: str | None = None
    ) -> None:
        if rows and self.ranks[1] == 0:
            self.publisher.publish(
                self._next_number(),
                lambda: TraceBatch(now, [], *self.ranks, self._texts(rows, finished)),
            )

    def _texts(self, rows: list[TracedRow], finished: str | None = None) -> list[RequestTrace]:
        return [_text(row, finished) for row in rows] if self.ranks[1] == 0 else []

    def _next_number(self) -> int:
        number, self._messages = self._messages, self._messages + 1
        return number

    def _row(self, place: int, request: TracedRequest) -> TracedRow:
        state = request.state
        tokens = min(state.generated_len, state.options.budget)
        lens = state.prompt_len, state.logical_len, state.resident_len
        text = request.input_ids.tobytes() + request.output_ids.tobytes()
        return TracedRow(place, request.rid, state.options, *lens, tokens, text)

    def _start(self, slots: torch.Tensor, tokens: int, host: torch.Tensor) -> Copy:
        tables = [
            self.buffers.births[..., :tokens].index_select(1, slots),
            # Its bits as int32, so that both tables share one buffer and one copy.
            self.buffers.weights.view(torch.int32)[..., :tokens].index_select(1, slots),
        ]
        source = torch.cat([table.flatten() for table in tables])
        target = host[: len(source)]
        parts = torch.split(target, [table.numel() for table in tables])
        births, weights = (
            part.view(table.shape) for part, table in zip(parts, tables, strict=True)
        )
        done = self._copy(source, target)
        return Copy(source, births, weights.view(torch.float32), done)

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


def _event(row: TracedRow, copy: Copy) -> TokenTrace:
    births, weights = (
        table[:, row.place, :, : row.tokens] for table in (copy.births, copy.weights)
    )
    return TokenTrace(
        row.rid,
        row.options.policy.label,
        row.options.budget,
        row.prompt_len,
        row.logical_len,
        row.resident_len,
        (births.shape[0], births.shape[1], births.shape[2]),
        _packed(births, BIRTH_DTYPE),
        _packed(weights, WEIGHT_DTYPE),
    )


def _text(row: TracedRow, finished: str | None) -> RequestTrace:
    policy = row.options.policy
    return RequestTrace(
        row.rid,
        policy.label,
        None if policy is Policy.DENSE else row.options.budget,
        row.prompt_len,
        row.logical_len,
        row.resident_len,
        np.frombuffer(row.text, np.int64).astype(TOKEN_DTYPE).tobytes(),
        finished,
    )


def _packed(table: torch.Tensor, dtype: "np.dtype[Any]") -> bytes:
    # Unlike `tobytes`, this lets the scheduler's thread run while it copies.
    whole = np.ascontiguousarray(table.numpy().astype(dtype, copy=False))
    return cast("bytes", whole.data.cast("B"))
