"""The tensors that every op shares.

Letters in shapes: ``B`` rows of a decode batch, ``M`` rows of the largest one, ``R`` request rows
of SGLang's `ReqToTokenPool` (row 0 is its padding row), ``Y`` layers, ``Hq`` query heads, ``H`` KV
heads, ``D`` head size, ``S`` KV slots, ``N`` tokens of the largest budget, ``G`` programs that
score. The *place* of a generated token is its index in the budget of its request, from 0 to L - 1.
"""

from enum import IntEnum
from typing import NamedTuple

import torch

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
# Decode steps in which `raas` forgets a query by a factor of e.
QUERY_MEMORY = 64
# Weight of the queries' variance beside their mean. 1 would be a Gaussian; what is looked up rarely
# is looked up by queries far from the mean.
SPREAD = 8.0
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


class RequestTables(NamedTuple):
    """What requests were admitted with; constant while a request runs.

    One entry for each request row [R] where the server keeps it, or for each row [B] of a batch.

    Attributes:
        policies: int32. A `Policy`; 0 (dense) for free rows and for the padding row.
        prompt_lens: int32. P, tokens before the first generated one.
        budgets: int32. L, a multiple of `BUDGET_UNIT`.
        periods: int32. `Policy.period`.
        first_steps: int32. Generated tokens that were prefilled when the request was admitted last,
            0 unless it was retracted; of earlier steps there are no queries.
    """

    policies: torch.Tensor
    prompt_lens: torch.Tensor
    budgets: torch.Tensor
    periods: torch.Tensor
    first_steps: torch.Tensor


class EvictionBuffers(NamedTuple):
    """Eviction state, of all layers or of one (then without the dimension Y).

    Attributes:
        births: [Y, R, H, N] int32. Step that generated the token in each place; unique. Written by
            `claim_slots`.
        weights: [Y, R, H, N] float32. What the policy knows of each token; 0 at birth. raas: its
            importance when it was scored last. raas-paper: its timestamp, the largest of a page
            counts. h2o: the attention probability that it has gathered. Written by `claim_slots`
            and `score_tokens`.
        value_norms: [Y, R, H, N] float32. Euclidean norm of the token's value. Written by
            `store_decode`.
        victims: [Y, R, H, LONG_PERIOD] int32. Places that the steps up to the next choice
            overwrite, in their order; raas-paper: one page. Written by `score_tokens`.
        query_means: [Y, R, Hq, D] float32. Mean of the row's recent queries, for raas. Written by
            `store_decode`.
        query_variances: [Y, R, Hq, D] float32. Variance of each of their dimensions, likewise.
    """

    births: torch.Tensor
    weights: torch.Tensor
    value_norms: torch.Tensor
    victims: torch.Tensor
    query_means: torch.Tensor
    query_variances: torch.Tensor

    def layer(self, index: int) -> "EvictionBuffers":
        """Views of one layer, counted from this rank's first."""
        return EvictionBuffers(*(tensor[index] for tensor in self))


class StepBuffers(NamedTuple):
    """What one decode step passes between its begin, its layers and its end.

    All layers begin at once, in `claim_slots`, and end at once, in `score_tokens`; what is left for
    each layer is to store. Only the batch's rows are ever read.

    Attributes:
        targets: [Y, M, H] int32. KV slot that each head writes this step's token to.
        places: [Y, M, H] int32. Its place in the budget; -1 for dense rows.
        queries: [Y, M, Hq, D], dtype of the KV cache. This step's queries, of rows that are scored
            at every step.
    """

    targets: torch.Tensor
    places: torch.Tensor
    queries: torch.Tensor

    def layer(self, index: int) -> "StepBuffers":
        """Views of one layer, counted from this rank's first."""
        return StepBuffers(*(tensor[index] for tensor in self))


class ScoreScratch(NamedTuple):
    """What `score_tokens` works with; nothing in it outlives the op.

    Attributes:
        due_rows: [M] int32. The rows that are scored, as many as ``due_count`` says.
        due_count: [1] int32.
        logits: [G, N + 1, C] float32. Logits of the head that each program has in hand, C the query
            heads of a KV head rounded up to a power of two, and their normalisers last. So many
            programs share the heads of all layers and due rows.
        scores: [G, N] float32. Scores of its tokens.
    """

    due_rows: torch.Tensor
    due_count: torch.Tensor
    logits: torch.Tensor
    scores: torch.Tensor


class DecodeBatch(NamedTuple):
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


class KeyCaches(NamedTuple):
    """SGLang's key caches of all layers.

    Attributes:
        layers: [S, H, D] each, one for each layer.
        pointers: [Y] int64, on their device. Where each begins, for kernels of all layers.
    """

    layers: list[torch.Tensor]
    pointers: torch.Tensor

    @classmethod
    def of(cls, layers: list[torch.Tensor]) -> "KeyCaches":
        """Notes where caches begin that stay where they are.

        Raises:
            ValueError: one begins where a vector of keys cannot be read at once.
        """
        pointers = [cache.data_ptr() for cache in layers]
        if any(pointer % ALIGNMENT for pointer in pointers):
            raise ValueError(
                f"key caches must begin at multiples of {ALIGNMENT} bytes, got {pointers}; "
                "allocate each by itself"
            )
        return cls(layers, torch.tensor(pointers, dtype=torch.int64, device=layers[0].device))


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


def require_layout(
    name: str, tensor: torch.Tensor, shape: tuple[int | None, ...], dtype: torch.dtype
) -> None:
    """Checks that a kernel can address a tensor.

    Args:
        name: What the error calls it.
        tensor: To be checked.
        shape: What it must be; None where any size will do.
        dtype: What it must be.

    Raises:
        ValueError: it has another shape or type, or is not contiguous.
    """
    fits = tensor.dim() == len(shape) and all(
        want is None or size == want for size, want in zip(tensor.shape, shape, strict=True)
    )
    if not (fits and tensor.dtype == dtype and tensor.is_contiguous()):
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(
            f"{name} must be contiguous {dtype} [{sizes}], got {tensor.dtype} "
            f"{list(tensor.shape)} with strides {tensor.stride()}"
        )
