"""The tensors that every op shares.

Letters in shapes: ``B`` rows of a decode batch, ``R`` request slots of SGLang's `ReqToTokenPool`
(row 0 is its padding row), ``Hq`` query heads, ``H`` KV heads, ``D`` head size, ``S`` KV slots,
``N`` eviction pages of the largest budget, ``C`` columns of `req_to_token`.
"""

from enum import IntEnum
from typing import NamedTuple

import torch


class Policy(IntEnum):
    """What a request gives up when its budget is full; the values are known to the kernels."""

    DENSE = 0
    RAAS = 1
    WINDOW = 2
    RANDOM = 3
    H2O = 4


class RequestTables(NamedTuple):
    """What each request slot was admitted with; constant while the request runs.

    Attributes:
        policies: [R] int32. A `Policy`; 0 (dense) for free slots and for the padding row.
        prompt_lens: [R] int32. P, tokens before the first generated one.
        budgets: [R] int32. L, a multiple of the eviction page size.
        stamp_pages: [R] int32. Pages that the top-r rule stamps at each step.
    """

    policies: torch.Tensor
    prompt_lens: torch.Tensor
    budgets: torch.Tensor
    stamp_pages: torch.Tensor


class EvictionBuffers(NamedTuple):
    """Eviction state of one layer.

    Attributes:
        stamps: [R, H, N] int32. Timestamp: last step at which the page was important.
        births: [R, H, N] int32. Step at which the page's first token was written; unique.
        mass: [R, H, N] float32. Attention probability that the page has gathered (H2O).
        current: [R, H] int32. The page being filled.
        key_min: [R, H, N, D], dtype of the KV cache. Per-channel minimum of the page's keys;
            unused, and N may be 0, without `StepOptions.bound_scores`.
        key_max: [R, H, N, D], dtype of the KV cache. Per-channel maximum.
    """

    stamps: torch.Tensor
    births: torch.Tensor
    mass: torch.Tensor
    current: torch.Tensor
    key_min: torch.Tensor
    key_max: torch.Tensor


class DecodeBatch(NamedTuple):
    """Where the rows of one decode step live.

    Attributes:
        req_pool_indices: [B] int64 or int32. Request slot of each row.
        seq_lens: [B] int64 or int32. Logical length, the token of this step included.
        out_cache_loc: [B] int64 or int32. Slot that SGLang allocated; 0 where it allocated none.
        req_to_token: [R, C] int32. Slots of each request, prompt first.
    """

    req_pool_indices: torch.Tensor
    seq_lens: torch.Tensor
    out_cache_loc: torch.Tensor
    req_to_token: torch.Tensor


class StepOptions(NamedTuple):
    """What stays the same for a whole server.

    Attributes:
        page_size: Tokens of one eviction page.
        layer_id: Layer, mixed into the random policy's choice.
        head_offset: Index of this rank's first KV head, so that ranks agree with one GPU.
        bound_scores: Whether RaaS pages are scored by their bounds before attention. If not,
            `stamp_pages` is called after it with exact scores.
    """

    page_size: int
    layer_id: int
    head_offset: int
    bound_scores: bool
