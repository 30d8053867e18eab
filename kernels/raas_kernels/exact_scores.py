"""Exact page scores on the GPU: from the logits that decode attention leaves behind."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from raas_kernels.layout import DecodeBatch, EvictionBuffers, StepBuffers, StepOptions

_LOG2_E = 1.4426950408889634
# Small blocks: a batch of one row has few of them. Larger ones gain little.
_BLOCK_TOKENS = 128
_NUM_WARPS = 1


class AttentionLogits(NamedTuple):
    """What attention tells of one layer; read before the next layer overwrites it.

    Attributes:
        logits: [M, Hq, T] float32. q·k of the budget's tokens in the order of their slots, before
            scaling; T is ``N * page_size``. Undefined beyond a row's tokens and for dense rows.
        lse: [M, Hq] float32. Binary logarithm of the sum of ``exp(scaling * q·k)`` over all
            resident tokens of the row.
    """

    logits: torch.Tensor
    lse: torch.Tensor

    @classmethod
    def empty(
        cls, max_rows: int, num_q_heads: int, budget_tokens: int, device: torch.device | str
    ) -> "AttentionLogits":
        """Allocates for the largest batch and the largest budget: ``4 * M * Hq * (T + 1)`` bytes.

        Args:
            max_rows: M.
            num_q_heads: Hq on this rank.
            budget_tokens: T.
            device: Of the KV cache.
        """
        shape = (max_rows, num_q_heads)
        return cls(
            torch.empty(*shape, budget_tokens, dtype=torch.float32, device=device),
            torch.empty(shape, dtype=torch.float32, device=device),
        )


def score_logits(
    logits: AttentionLogits,
    scaling: float,
    batch: DecodeBatch,
    buffers: EvictionBuffers,
    step: StepBuffers,
    options: StepOptions,
) -> None:
    """Turns the logits of one layer into the scores of its pages.

    In the page being filled only its own tokens count, not those that it has yet to overwrite.
    Pages that hold nothing score zero; dense rows are left as they are. No synchronisation.

    Args:
        logits: From the layer's attention.
        scaling: Factor on q·k before the softmax.
        batch: Rows of the step.
        buffers: Eviction state of the layer.
        step: Buffers of the layer; ``page_scores`` gets the largest probability of a token of the
            page, the maximum over the KV head's queries, ``page_mass`` the sum of its tokens'
            probabilities, the mean over them.
        options: Server-wide choices.
    """
    rows = batch.positions.shape[0]
    heads, pages = step.page_mass.shape[1:]
    queries, tokens = logits.logits.shape[1:]
    if tokens != pages * options.page_size or step.page_scores.shape != step.page_mass.shape:
        raise ValueError(
            f"logits must hold the tokens of {pages} pages of {options.page_size}, and page_scores "
            f"be {tuple(step.page_mass.shape)}, got {tokens} tokens and "
            f"{tuple(step.page_scores.shape)}; allocate them for the same largest budget, without "
            "bound_scores"
        )
    if rows == 0:
        return
    block_pages = max(1, min(triton.next_power_of_2(pages), _BLOCK_TOKENS // options.page_size))
    _score_logits[(rows, heads, triton.cdiv(pages, block_pages))](
        logits.logits,
        logits.lse,
        batch.positions,
        *(batch.requests.policies, batch.requests.prompt_lens, batch.requests.budgets),
        batch.req_pool_indices,
        buffers.current,
        step.page_scores,
        step.page_mass,
        scaling * _LOG2_E,
        pages,
        GROUP=queries // heads,
        PAGE_SIZE=options.page_size,
        BLOCK_PAGES=block_pages,
        num_warps=_NUM_WARPS,
    )


@triton.jit
def _score_logits(
    logits,
    lse,
    positions,
    policies,
    prompt_lens,
    budgets,
    req_pool_indices,
    current,
    page_scores,
    page_mass,
    scaling_log2,
    num_pages,
    GROUP: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_PAGES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    num_heads = tl.num_programs(1)
    if tl.load(policies + row) == 0:
        return
    step = tl.load(positions + row).to(tl.int32) - tl.load(prompt_lens + row)
    held = tl.minimum(step + 1, tl.load(budgets + row))
    slot = tl.load(req_pool_indices + row).to(tl.int64)
    filling = tl.load(current + slot * num_heads + head)

    page = tl.program_id(2) * BLOCK_PAGES + tl.arange(0, BLOCK_PAGES)
    offset = tl.arange(0, PAGE_SIZE)
    token = page[:, None] * PAGE_SIZE + offset[None, :]
    own = (page[:, None] != filling) | (offset[None, :] <= step % PAGE_SIZE)
    counts = own & (token < held)

    largest = tl.zeros([BLOCK_PAGES], tl.float32)
    total = tl.zeros([BLOCK_PAGES], tl.float32)
    for member in tl.static_range(GROUP):
        query = (row * num_heads + head) * GROUP + member
        logit = tl.load(logits + query * num_pages * PAGE_SIZE + token, mask=counts, other=0.0)
        weight = tl.exp2(logit * scaling_log2 - tl.load(lse + query))
        weight = tl.where(counts, weight, 0.0)
        largest = tl.maximum(largest, tl.max(weight, 1))
        total += tl.sum(weight, 1)
    out = (row * num_heads + head) * num_pages + page
    tl.store(page_scores + out, largest, mask=page < num_pages)
    tl.store(page_mass + out, total / GROUP, mask=page < num_pages)
