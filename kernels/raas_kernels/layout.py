"""What product and kernels agree on: policies, numbers of the rules, and a decode step's inputs.

Letters in shapes are those of `raas_kernels.buffers`; ``S`` are KV slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import torch

from raas_kernels.buffers import RequestTables

# Bytes; kernels are compiled for caches that begin at multiples of it.
ALIGNMENT = 16
# Tokens; every budget is a multiple of it, so that every period and page divides it.
BUDGET_UNIT = 16
# Tokens; kernels look at a whole budget at once, and take minutes to compile for more.
LARGEST_BUDGET = 65536
# Tokens that `raas-paper` gives up together, as in the paper.
PAPER_PAGE = 16
# Decode steps from one scoring of `raas` to the next. Each reads the keys of the whole budget, so
# large budgets are scored less often; so many steps are few beside them.
PERIOD, LONG_PERIOD, LONG_PERIOD_BUDGET = 4, 8, 512
# Decode steps in which `raas` forgets a query and a key by a factor of e.
MEMORY = 64
# Nats that the variance of a query head's queries adds to the logit of a common key, if the spread
# that it takes, the variance's weight, is within these bounds. A spread of 1 is that of Gaussian
# queries; what is looked up rarely is looked up by queries further from the mean.
BONUS = 4.0
LEAST_SPREAD, LARGEST_SPREAD = 1.0, 8.0
# What a token's importance, a logarithm, loses while as many tokens as the budget holds follow it.
AGEING = 1.0


class Policy(IntEnum):
    """What a request gives up when its budget is full; the values are known to the kernels."""

    DENSE = 0
    RAAS = 1
    RAAS_PAPER = 2
    WINDOW = 3
    RANDOM = 4
    H2O = 5

    @property
    def label(self) -> str:
        """Its name in flags, requests and reports."""
        return self.name.lower().replace("_", "-")

    def period(self, budget: int) -> int:
        """Decode steps from one scoring of a request's tokens to the next; 0 if none is needed.

        Args:
            budget: L in tokens.
        """
        if self is Policy.RAAS:
            return LONG_PERIOD if budget >= LONG_PERIOD_BUDGET else PERIOD
        return 1 if self in (Policy.RAAS_PAPER, Policy.H2O) else 0


@dataclass(frozen=True, kw_only=True)
class DecodeBatch:
    """Where the rows of one decode step live.

    Everything is the step's own copy: a replayed CUDA graph may run after the scheduler has given a
    request's row to another one.

    Attributes:
        req_pool_indices: [B] int64 or int32. Request row of each row.
        positions: [B] int64 or int32. Position of this step's token, the logical length less one.
        out_cache_loc: [B] int64 or int32. Slot that SGLang allocated; 0 where it allocated none.
        kv_indptr: [B] or longer, int64 or int32. Where each row begins in ``kv_indices``.
        kv_indices: [*] int32. Resident slots of each row, prompt first, one for each token:
            FlashInfer's page table with page size 1.
        requests: Tables of the rows, [B].
    """

    req_pool_indices: torch.Tensor
    positions: torch.Tensor
    out_cache_loc: torch.Tensor
    kv_indptr: torch.Tensor
    kv_indices: torch.Tensor
    requests: RequestTables

    def pointers(self, *names: str) -> dict[str, torch.Tensor]:
        """Arguments of a kernel: the named tensors under their names with ``_ptr``."""
        return {f"{name}_ptr": getattr(self, name) for name in names}


class KVScales(NamedTuple):
    """What a layer's keys and values are divided by when they are stored as float8.

    Whoever reads them multiplies by it.

    Attributes:
        k_scale: Of the keys; None for 1, which costs nothing.
        v_scale: Of the values, likewise.
    """

    k_scale: float | None = None
    v_scale: float | None = None


UNSCALED = KVScales()


class KeyCaches(NamedTuple):
    """SGLang's key caches of all layers.

    Attributes:
        layers: [S, H, D] each, one for each layer.
        pointers: [Y] int64, on their device. Where each begins, for kernels of all layers.
        scales: [Y] float32, beside them. What the keys of each were divided by; None if by nothing.
    """

    layers: list[torch.Tensor]
    pointers: torch.Tensor
    scales: torch.Tensor | None

    @classmethod
    def of(cls, layers: list[torch.Tensor], scales: Sequence[KVScales] = ()) -> "KeyCaches":
        """Notes where caches begin that stay where they are.

        Args:
            layers: The caches.
            scales: Of each layer; none if they hold keys as they are.

        Raises:
            ValueError: one begins where a vector of keys cannot be read at once.
        """
        pointers = [cache.data_ptr() for cache in layers]
        if any(pointer % ALIGNMENT for pointer in pointers):
            raise ValueError(
                f"key caches must begin at multiples of {ALIGNMENT} bytes, got {pointers}; "
                "allocate each by itself"
            )
        device, factors = layers[0].device, None
        if any(each.k_scale for each in scales):
            factors = torch.tensor(
                [each.k_scale or 1.0 for each in scales], dtype=torch.float32, device=device
            )
        return cls(layers, torch.tensor(pointers, dtype=torch.int64, device=device), factors)

    def require(self, layers: int, head_dim: int, queries: torch.dtype) -> None:
        """Checks that these are the keys which queries are multiplied with.

        Args:
            layers: How many layers there are.
            head_dim: Numbers of a key.
            queries: Type of the queries.

        Raises:
            ValueError: they are of other layers, of other heads, or of another type.
        """
        cache = self.layers[0]
        if cache.stride()[1:] != (head_dim, 1) or len(self.pointers) != layers:
            raise ValueError(
                f"keys must be {layers} caches with contiguous heads of {head_dim}, got "
                f"{len(self.pointers)} with strides {cache.stride()}"
            )
        if cache.dtype not in (queries, torch.float8_e4m3fn):
            raise ValueError(f"queries must be {cache.dtype} as the keys, got {queries}")


class StepOptions(NamedTuple):
    """What stays the same for a whole server.

    Attributes:
        head_offset: Index of this rank's first KV head, so that ranks agree with one GPU.
        layer_offset: Index of this rank's first layer, so that stages agree with one GPU.
        scaling: Factor on q·k before the softmax.
    """

    head_offset: int
    layer_offset: int = 0
    scaling: float = 1.0
