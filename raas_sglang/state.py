"""Eviction state of all layers, indexed by SGLang's request slots."""

from typing import NamedTuple

import torch

from raas_kernels import EvictionBuffers, Policy, RequestTables, ScoreScratch, StepBuffers
from raas_kernels.layout import LONG_PERIOD
from raas_sglang.config import RaasConfig
from raas_sglang.life.request import NO_LIMIT, RequestState

# So many programs score on a multiprocessor at a time, if their registers and shared memory fit.
PROGRAMS_PER_PROCESSOR = 3


class StateShape(NamedTuple):
    """What the size of the eviction state depends on besides the settings.

    Attributes:
        layers: Layers on this rank.
        heads: H, KV heads on this rank.
        query_heads: Hq, query heads on this rank.
        head_dim: D.
        dtype: Of the KV cache.
        query_dtype: Of the queries, which a quantised KV cache does not change.
    """

    layers: int
    heads: int
    query_heads: int
    head_dim: int
    dtype: torch.dtype
    query_dtype: torch.dtype

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
        sizes = _sizes(config, shape, num_slots, self.device)
        self.buffers = EvictionBuffers.zeros(sizes, self.device, shape.query_dtype)
        self.step = StepBuffers.zeros(sizes, self.device, shape.query_dtype)
        self.scratch = ScoreScratch.zeros(sizes, self.device, shape.query_dtype)
        names = list(RequestTables.declared())
        self._tables = torch.zeros((len(names), num_slots), dtype=torch.int32, device=self.device)
        self._capacities = self._tables[names.index("capacities")].fill_(NO_LIMIT)
        self.epoch = 0
        self._requests = self._logical_lens = self._resident_lens = torch.empty(0)

    @staticmethod
    def bytes_per_slot(config: RaasConfig, shape: StateShape) -> int:
        """Device memory that one more request row costs."""
        sizes = _sizes(config, shape, 1, torch.device("cpu"))
        kinds = RequestTables, EvictionBuffers, StepBuffers
        return sum(kind.num_bytes(sizes, shape.query_dtype) for kind in kinds)

    @staticmethod
    def scratch_bytes(config: RaasConfig, shape: StateShape, device: torch.device | str) -> int:
        """Device memory that is needed once, but for 4 bytes a row."""
        sizes = _sizes(config, shape, 0, torch.device(device))
        return ScoreScratch.num_bytes(sizes, shape.query_dtype)

    def admit(self, slots: list[int], states: list[RequestState]) -> None:
        """Writes what requests ask for into the tables, before their first decode step.

        Args:
            slots: Request slots that SGLang gave them.
            states: The requests; one that cannot evict is dense to the kernels.
        """
        policies = [s.options.policy if s.options.evicts else Policy.DENSE for s in states]
        budgets = [s.options.budget for s in states]
        asked = {
            "policies": policies,
            "prompt_lens": [s.prompt_len for s in states],
            "budgets": budgets,
            "periods": [p.period(budget) for p, budget in zip(policies, budgets, strict=True)],
            "first_steps": [s.generated_len for s in states],
            "capacities": [s.capacity for s in states],
        }
        columns = [asked[name] for name in RequestTables.declared()]
        values = torch.tensor(columns, dtype=torch.int32).to(self.device, non_blocking=True)
        index = torch.tensor(slots, dtype=torch.int64).to(self.device, non_blocking=True)
        self._tables[:, index] = values
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
            out: [tables, B] int32, contiguous; where to copy them, or None for new memory.

        Returns:
            Tables of the rows, [B].
        """
        return RequestTables.of(torch.index_select(self._tables, 1, req_pool_indices, out=out))

    def resident_lens(self, req_pool_indices: torch.Tensor, seq_lens: torch.Tensor) -> torch.Tensor:
        """Slots that attention reads for each row: P + min(generated, L), all for dense rows.

        Args:
            req_pool_indices: [B] int64 request slots, on the device of the KV cache.
            seq_lens: [B] int64 logical lengths, beside them.

        Returns:
            [B] of the dtype of ``seq_lens``, beside them, no synchronisation.
        """
        return torch.minimum(seq_lens, self._capacities[req_pool_indices].to(seq_lens.dtype))


def _sizes(
    config: RaasConfig, shape: StateShape, rows: int, device: torch.device
) -> dict[str, int]:
    """What the letters of `raas_kernels.buffers` stand for in a server."""
    return {
        "Y": shape.layers,
        "R": rows,
        "B": rows,
        "M": rows,
        "H": shape.heads,
        "Hq": shape.query_heads,
        "D": shape.head_dim,
        "N": config.max_budget,
        "V": LONG_PERIOD,
        "G": _score_programs(device),
        "C": 1 << (shape.query_heads // shape.heads - 1).bit_length(),
    }


def _score_programs(device: torch.device) -> int:
    """G, programs that score: as many as a GPU runs at a time."""
    if device.type != "cuda":
        return PROGRAMS_PER_PROCESSOR
    properties = torch.cuda.get_device_properties(device)
    return PROGRAMS_PER_PROCESSOR * int(properties.multi_processor_count)
