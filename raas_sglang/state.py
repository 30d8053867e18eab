"""Eviction state of all layers, indexed by SGLang's request slots."""

import torch

from raas_kernels import EvictionBuffers, Policy, RequestTables
from raas_sglang.config import RaasConfig
from raas_sglang.request import RequestState


class EvictionState:
    """Owns the timestamps, page bounds and request tables on the device.

    Nothing is cleared between requests: a page's state is written when the page is born, and pages
    that were not born yet are never read.

    Args:
        config: The server's settings.
        num_slots: R, rows of `req_to_token`, its padding row 0 included.
        num_layers: Layers on this rank.
        num_heads: H, KV heads on this rank.
        head_dim: D.
        dtype: Of the KV cache.
        device: Of the KV cache.
    """

    def __init__(
        self,
        config: RaasConfig,
        num_slots: int,
        num_layers: int,
        num_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        pages = config.max_budget // config.kv_eviction_page_size
        shape = (num_layers, num_slots, num_heads, pages)

        def zeros(*size: int, kind: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(size, dtype=kind, device=self.device)

        bounds = (*shape[:3], pages if config.kv_score == "bound" else 0, head_dim)
        self._layers = [
            EvictionBuffers(*tensors)
            for tensors in zip(
                zeros(*shape),
                zeros(*shape),
                zeros(*shape, kind=torch.float32),
                zeros(*shape[:3]),
                zeros(*bounds, kind=dtype),
                zeros(*bounds, kind=dtype),
                strict=True,
            )
        ]
        self.tables = RequestTables(*(zeros(num_slots) for _ in RequestTables._fields))

    def layer(self, index: int) -> EvictionBuffers:
        """Buffers of a layer, counted from this rank's first."""
        return self._layers[index]

    def admit(self, slots: list[int], states: list[RequestState]) -> None:
        """Writes what requests ask for into the tables, before their first decode step.

        Args:
            slots: Request slots that SGLang gave them.
            states: The requests; one that cannot evict is dense to the kernels.
        """
        options = [state.options for state in states]
        columns = (
            [int(o.policy) if o.evicts else int(Policy.DENSE) for o in options],
            [state.prompt_len for state in states],
            [o.budget for o in options],
            [self.config.stamp_pages(o.budget) for o in options],
        )
        values = torch.tensor(columns, dtype=torch.int32).to(self.device, non_blocking=True)
        index = torch.tensor(slots, dtype=torch.int64).to(self.device, non_blocking=True)
        for table, column in zip(self.tables, values, strict=True):
            table[index] = column

    def resident_lens(self, req_pool_indices: torch.Tensor, seq_lens: torch.Tensor) -> torch.Tensor:
        """Slots that attention reads for each row: P + min(generated, L), all for dense rows.

        Args:
            req_pool_indices: [B] int64 request slots.
            seq_lens: [B] int64 logical lengths.

        Returns:
            [B] of the dtype of ``seq_lens``, same device, no synchronisation.
        """
        tables = self.tables
        full = (tables.prompt_lens + tables.budgets)[req_pool_indices].to(seq_lens.dtype)
        dense = tables.policies[req_pool_indices] == int(Policy.DENSE)
        return torch.where(dense, seq_lens, torch.minimum(seq_lens, full))
