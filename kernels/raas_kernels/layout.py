"""The tensors that every op shares.

Letters in shapes: ``B`` rows of a decode batch, ``M`` rows of the largest one, ``R`` request slots
of SGLang's `ReqToTokenPool` (row 0 is its padding row), ``Y`` layers, ``Hq`` query heads, ``H`` KV
heads, ``D`` head size, ``S`` KV slots, ``N`` eviction pages of the largest budget, ``T`` decode
steps that are scored together, ``G`` programs that score.
"""

from enum import IntEnum
from typing import NamedTuple

import torch

# Bytes; kernels are compiled for caches that begin at multiples of it.
ALIGNMENT = 16


class Policy(IntEnum):
    """What a request gives up when its budget is full; the values are known to the kernels."""

    DENSE = 0
    RAAS = 1
    WINDOW = 2
    RANDOM = 3
    H2O = 4


class RequestTables(NamedTuple):
    """What requests were admitted with; constant while a request runs.

    One entry for each request slot [R] where the server keeps it, or for each row [B] of a batch.

    Attributes:
        policies: int32. A `Policy`; 0 (dense) for free slots and for the padding row.
        prompt_lens: int32. P, tokens before the first generated one.
        budgets: int32. L, a multiple of the eviction page size.
        stamp_pages: int32. Pages that the paper's rule stamps at each step.
        first_steps: int32. Generated tokens that were prefilled when the request was admitted last,
            0 unless it was interrupted; of earlier steps there are no queries.
    """

    policies: torch.Tensor
    prompt_lens: torch.Tensor
    budgets: torch.Tensor
    stamp_pages: torch.Tensor
    first_steps: torch.Tensor


class EvictionBuffers(NamedTuple):
    """Eviction state, of all layers or of one (then without the dimension Y).

    Attributes:
        stamps: [Y, R, H, N] int32. Timestamp: last step at which the page was important, or where
            nothing stamps it that of its last token.
        births: [Y, R, H, N] int32. Step at which the page's first token was written; unique.
        mass: [Y, R, H, N] float32. Attention probability that the page has gathered: H2O's sum of
            all of it, or the lrfu rule's fading sum of what the page scored at each stamping.
        current: [Y, R, H] int32. The page being filled.
        queries: [Y, R, T, Hq, D], dtype of the KV cache. Queries of the request's last steps, step
            ``s`` in place ``s mod T``; unused, and T is 0, without `StepOptions.bound_scores`.
    """

    stamps: torch.Tensor
    births: torch.Tensor
    mass: torch.Tensor
    current: torch.Tensor
    queries: torch.Tensor

    def layer(self, index: int) -> "EvictionBuffers":
        """Views of one layer, counted from this rank's first."""
        return EvictionBuffers(*(tensor[index] for tensor in self))


class StepBuffers(NamedTuple):
    """What one decode step passes between its begin, its layers and its end.

    All layers begin at once, in `claim_slots`, and end at once, in `score_pages` or `stamp_decode`;
    what is left for each layer is to store. Only the batch's rows are ever read.

    Attributes:
        targets: [Y, M, H] int32. KV slot that each head writes this step's token to.
        query_places: [Y, M] int32. Place of the row's queries in `EvictionBuffers.queries` of the
            layer, counted over ``R * T``.
        page_scores: [Y, M, H, N] float32. Largest attention probability of a token of the page;
            unused, and M is 0, with `StepOptions.bound_scores`.
        page_mass: [Y, M, H, N] float32. Sum of the probabilities of the page's tokens, the mean
            over the KV head's queries; unused like ``page_scores``.
    """

    targets: torch.Tensor
    query_places: torch.Tensor
    page_scores: torch.Tensor
    page_mass: torch.Tensor

    def layer(self, index: int) -> "StepBuffers":
        """Views of one layer, counted from this rank's first."""
        return StepBuffers(*(tensor[index] for tensor in self))


class ScoreScratch(NamedTuple):
    """What `score_pages` works with; nothing in it outlives the op.

    Attributes:
        due_rows: [M] int32. The rows that are due, as many as ``due_count`` says.
        due_count: [1] int32.
        scores: [G, T, N] float32. Page scores of the head that each program has in hand. So many
            programs share the heads of all layers and due rows.
    """

    due_rows: torch.Tensor
    due_count: torch.Tensor
    scores: torch.Tensor


class DecodeBatch(NamedTuple):
    """Where the rows of one decode step live.

    Everything is the step's own copy: a replayed CUDA graph may run after the scheduler has given a
    request's slot to another one.

    Attributes:
        req_pool_indices: [B] int64 or int32. Request slot of each row.
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
        page_size: Tokens of one eviction page.
        head_offset: Index of this rank's first KV head, so that ranks agree with one GPU.
        bound_scores: Whether RaaS pages are scored by their bounds; if not, by attention.
        alpha: Threshold of the alpha rule; None for another rule.
        scored_steps: T. Decode steps of a RaaS request that are scored and stamped together, after
            the last of them; with bound scores a multiple of the page size, else 1. Only pages that
            were full before the first of them count. With T equal to the page size nothing is late,
            since a victim is chosen only where a page begins.
        layer_offset: Index of this rank's first layer, so that stages agree with one GPU.
        fade: Factor by which the lrfu rule lets a page's mass fade at each step; None for another
            rule.
        floor: Newest tokens that a RaaS row does not give up, at most half of its budget; whole
            pages of them.
        scaling: Factor on q·k before the softmax that makes probabilities of bounds, for the lrfu
            rule.
    """

    page_size: int
    head_offset: int
    bound_scores: bool
    alpha: float | None
    scored_steps: int = 1
    layer_offset: int = 0
    fade: float | None = None
    floor: int = 0
    scaling: float = 1.0
