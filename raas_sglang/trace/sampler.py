"""Samples what decode batches hold, and gives it to the publisher's thread.

That thread waits for the tables on their way to the host; the scheduler's does not. A sample for
which there is no buffer is left out.
"""

import secrets
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
from raas_sglang.trace.table_copy import TableCopier, TableCopy


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
        self.config = config
        self.publisher = publisher
        self.ranks = (attn_dp_rank, tp_rank)
        self._server = secrets.randbits(63)
        self._copier = TableCopier(buffers)
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
        copy = self._copier.start(req_pool_indices, max(row.tokens for row in evicting))
        if copy is None:
            return  # the subscriber sees the gap in the sequence

        def message() -> TraceBatch:
            copy.wait()
            events = [_event(row, copy) for row in evicting]
            self._copier.release(copy)
            return self._batch(now, events, rows)

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
                lambda: self._batch(now, [], rows, finished),
            )

    def _batch(
        self,
        now: float,
        events: list[TokenTrace],
        rows: list[TracedRow],
        finished: str | None = None,
    ) -> TraceBatch:
        texts = [_text(row, finished) for row in rows] if self.ranks[1] == 0 else []
        return TraceBatch(now, events, *self.ranks, texts, self._server)

    def _next_number(self) -> int:
        number, self._messages = self._messages, self._messages + 1
        return number

    def _row(self, place: int, request: TracedRequest) -> TracedRow:
        state = request.state
        tokens = min(state.generated_len, state.options.budget)
        lens = state.prompt_len, state.logical_len, state.resident_len
        text = request.input_ids.tobytes() + request.output_ids.tobytes()
        return TracedRow(place, request.rid, state.options, *lens, tokens, text)


def _event(row: TracedRow, copy: TableCopy) -> TokenTrace:
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
    # A copy: the buffer is used again while this is sent. Unlike `tobytes`, numpy lets the
    # scheduler's thread run meanwhile.
    whole = np.array(table.numpy(), dtype, order="C")
    return cast("bytes", whole.data.cast("B"))
