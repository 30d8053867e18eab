"""Eviction state of all layers, indexed by SGLang's request slots."""

import math
from typing import NamedTuple

import torch

from raas_kernels import EvictionBuffers, Policy, RequestTables, ScoreScratch, StepBuffers
from raas_kernels.layout import LONG_PERIOD
from raas_sglang.config import RaasConfig
from raas_sglang.life.request import NO_LIMIT, RequestState

# That score at a time, as far as their registers and shared memory fit.
_PROGRAMS_PER_PROCESSOR = 3


class StateShape(NamedTuple):
    """What the size of the eviction state depends on besides the settings.

    Attributes:
        layers: Layers on this rank.
        heads: H, KV heads on this rank.
        query_heads: Hq, query heads on this rank.
        head_dim: D.
        dtype: Of the KV cache and the queries.
    """

    layers: int
    heads: int
    query_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        """Memory of a token's keys and values on this rank."""
        return 2 * self.layers * self.heads * self.head_dim * self.dtype.itemsize


class EvictionState:
    """Owns what policies know of tokens, and the request tables, on the device.

    Nothing is cleared between requests: a token's state is written when the token is born, and
    places that hold none are never read.

    Args:
        config: The server's settings.
        shape: The model's part of the size.
        num_slots: R, rows of `req_to_token`, its padding row 0 included; also the most rows of a
            decode batch.
        device: Of the KV cache.

    Attributes:
        buffers: State of all layers.
        step: What a decode step passes between its begin, its layers and its end.
        scratch: What tokens are scored in at its end.
        capacities: [R] int64. P + L: resident length at which each request stops growing.
        epoch: Changes whenever the slots of a running request may have changed other than by
            growing; a plan made in the same epoch for the same resident lengths still holds.
    """

    def __init__(
        self,
        config: RaasConfig,
        shape: StateShape,
        num_slots: int,
        device: torch.device | str,
    ) -> None:
        self.device = torch.device(device)

        def zeros(fields: _Fields) -> list[torch.Tensor]:
            return [torch.zeros(size, dtype=dtype, device=self.device) for size, dtype in fields]

        self.buffers = EvictionBuffers(*zeros(_buffer_fields(config, shape, num_slots)))
        self.step = StepBuffers(*zeros(_step_fields(shape, num_slots)))
        self.scratch = ScoreScratch(*zeros(_scratch_fields(config, shape, num_slots, self.device)))
        self._tables = torch.zeros(
            (len(RequestTables._fields), num_slots), dtype=torch.int32, device=self.device
        )
        self.capacities = torch.full((num_slots,), NO_LIMIT, dtype=torch.int64, device=self.device)
        self.epoch = 0
        self._requests = self._logical_lens = self._resident_lens = torch.empty(0)

    @staticmethod
    def bytes_per_slot(config: RaasConfig, shape: StateShape) -> int:
        """Device memory that one more request row costs."""
        return _bytes([*_buffer_fields(config, shape, 1), *_step_fields(shape, 1)])

    @staticmethod
    def scratch_bytes(config: RaasConfig, shape: StateShape, device: torch.device | str) -> int:
        """Device memory that is needed once, but for 4 bytes a row."""
        return _bytes(_scratch_fields(config, shape, 0, torch.device(device)))

    def admit(self, slots: list[int], states: list[RequestState]) -> None:
        """Writes what requests ask for into the tables, before their first decode step.

        Args:
            slots: Request slots that SGLang gave them.
            states: The requests; one that cannot evict is dense to the kernels.
        """
        columns = [
            [int(s.options.policy) if s.options.evicts else int(Policy.DENSE) for s in states],
            [s.prompt_len for s in states],
            [s.options.budget for s in states],
            [s.options.policy.period(s.options.budget) for s in states],
            [s.generated_len for s in states],
            [s.capacity for s in states],
        ]
        values = torch.tensor(columns, dtype=torch.int64).to(self.device, non_blocking=True)
        index = torch.tensor(slots, dtype=torch.int64).to(self.device, non_blocking=True)
        self._tables[:, index] = values[:-1].int()
        self.capacities[index] = values[-1]
        self.slots_changed()

    def begin_step(
        self, req_pool_indices: torch.Tensor, logical_lens: torch.Tensor, lens: torch.Tensor
    ) -> None:
        """Notes the rows of a decode step, which attention is not told on the host.

        Args:
            req_pool_indices: [B] int64 request slots, on the host.
            logical_lens: [B] int64, beside them.
            lens: [B] int64 resident lengths, beside them.
        """
        if not torch.equal(req_pool_indices, self._requests):
            self.epoch += 1
            self._requests = req_pool_indices.clone()
        self._logical_lens, self._resident_lens = logical_lens, lens

    def step_lens(self, seq_lens: torch.Tensor) -> torch.Tensor:
        """Resident lengths, on the host, of the step that was begun.

        Args:
            seq_lens: [B'] logical lengths as attention gets them; the rows after those of the step
                are padding of a CUDA graph, and none of them is limited.

        Returns:
            [B'] of the same dtype.

        Raises:
            RuntimeError: it is another step, so that attention would read slots of no token.
        """
        rows = len(self._requests)
        if not torch.equal(seq_lens[:rows].to(torch.int64), self._logical_lens):
            raise RuntimeError(
                "RaaS must know the requests of each decode step, got one that SGLang did not "
                "prepare as usual; restart without --kv-policy, and report this"
            )
        lens = seq_lens.clone()
        lens[:rows] = self._resident_lens
        return lens

    def slots_changed(self) -> None:
        """Notes that slots of a request were given to it or exchanged."""
        self.epoch += 1

    def rows(
        self, req_pool_indices: torch.Tensor, out: torch.Tensor | None = None
    ) -> RequestTables:
        """Copies the tables of the rows of a batch.

        Args:
            req_pool_indices: [B] int64 request slots.
            out: [5, B] int32, contiguous; where to copy them, or None for new memory.

        Returns:
            Tables of the rows, [B].
        """
        return RequestTables(*torch.index_select(self._tables, 1, req_pool_indices, out=out))

    def resident_lens(self, req_pool_indices: torch.Tensor, seq_lens: torch.Tensor) -> torch.Tensor:
        """Slots that attention reads for each row: P + min(generated, L), all for dense rows.

        Args:
            req_pool_indices: [B] int64 request slots, on the device of the KV cache.
            seq_lens: [B] int64 logical lengths, beside them.

        Returns:
            [B] of the dtype of ``seq_lens``, beside them, no synchronisation.
        """
        return torch.minimum(seq_lens, self.capacities[req_pool_indices].to(seq_lens.dtype))


_Fields = list[tuple[tuple[int, ...], torch.dtype]]


def _bytes(fields: _Fields) -> int:
    return sum(math.prod(size) * dtype.itemsize for size, dtype in fields)


def _buffer_fields(config: RaasConfig, shape: StateShape, rows: int) -> _Fields:
    """Size and dtype of each field of `EvictionBuffers`."""
    heads = (shape.layers, rows, shape.heads)
    tokens = (*heads, config.max_budget)
    moments = (shape.layers, rows, shape.query_heads, shape.head_dim)
    return [
        (tokens, torch.int32),
        (tokens, torch.float32),
        (tokens, torch.float32),
        ((*heads, LONG_PERIOD), torch.int32),
        (moments, torch.float32),
        (moments, torch.float32),
    ]


def _step_fields(shape: StateShape, rows: int) -> _Fields:
    """Size and dtype of each field of `StepBuffers`."""
    return [
        ((shape.layers, rows, shape.heads), torch.int32),
        ((shape.layers, rows, shape.heads), torch.int32),
        ((shape.layers, rows, shape.query_heads, shape.head_dim), shape.dtype),
    ]


def _score_programs(device: torch.device) -> int:
    """G, programs that score: as many as a GPU runs at a time."""
    if device.type != "cuda":
        return _PROGRAMS_PER_PROCESSOR
    properties = torch.cuda.get_device_properties(device)
    return _PROGRAMS_PER_PROCESSOR * int(properties.multi_processor_count)


def _scratch_fields(
    config: RaasConfig, shape: StateShape, rows: int, device: torch.device
) -> _Fields:
    """Size and dtype of each field of `ScoreScratch`."""
    programs, group = _score_programs(device), shape.query_heads // shape.heads
    columns = 1 << (group - 1).bit_length()
    return [
        ((rows,), torch.int32),
        ((1,), torch.int32),
        ((programs, config.max_budget + 1, columns), torch.float32),
        ((programs, config.max_budget), torch.float32),
    ]
