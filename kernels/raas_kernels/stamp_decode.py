"""Stamps from exact scores, after attention; also gathers attention mass for H2O.

One program per row and KV head; reads one row of scores and writes one row of timestamps.
"""

import torch
import triton
import triton.language as tl

from raas_kernels.layout import DecodeBatch, EvictionBuffers, RequestTables, StepOptions
from raas_kernels.select import H2O, RAAS, top_pages


def stamp_decode(
    page_scores: torch.Tensor,
    page_mass: torch.Tensor,
    batch: DecodeBatch,
    tables: RequestTables,
    buffers: EvictionBuffers,
    options: StepOptions,
    alpha: float | None,
) -> None:
    """Same contract as `torch_ops.stamp_decode`; asynchronous and CUDA-graph safe.

    Raises:
        ValueError: scores or mass are not contiguous float32 [B, H, N].
    """
    rows, heads, num_pages = page_scores.shape
    if rows == 0:
        return
    for name, tensor in (("page_scores", page_scores), ("page_mass", page_mass)):
        expected = (rows, heads, buffers.stamps.shape[2])
        if tensor.shape != expected or tensor.dtype != torch.float32 or not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous float32 {expected}, got {tensor.dtype} "
                f"{tuple(tensor.shape)}"
            )
    _stamp_decode_kernel[(rows, heads)](
        page_scores,
        page_mass,
        batch.req_pool_indices,
        batch.seq_lens,
        *tables,
        buffers.stamps,
        buffers.mass,
        buffers.current,
        0.0 if alpha is None else alpha,
        num_pages,
        HEADS=heads,
        BLOCK_PAGES=triton.next_power_of_2(num_pages),
        PAGE_SIZE=options.page_size,
        STAMP=not options.bound_scores,
        ALPHA=alpha is not None,
        num_warps=1,
    )


@triton.jit
def _stamp_decode_kernel(
    page_scores_ptr,
    page_mass_ptr,
    req_pool_indices_ptr,
    seq_lens_ptr,
    policies_ptr,
    prompt_lens_ptr,
    budgets_ptr,
    stamp_pages_ptr,
    stamps_ptr,
    mass_ptr,
    current_ptr,
    alpha,
    num_pages,
    HEADS: tl.constexpr,
    BLOCK_PAGES: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    STAMP: tl.constexpr,
    ALPHA: tl.constexpr,
):
    row = tl.program_id(0)
    head = tl.program_id(1)
    slot = tl.load(req_pool_indices_ptr + row).to(tl.int64)
    policy = tl.load(policies_ptr + slot)
    pages = tl.arange(0, BLOCK_PAGES)
    inside = pages < num_pages
    state = (slot * HEADS + head) * num_pages
    here = (row.to(tl.int64) * HEADS + head) * num_pages
    if policy == H2O:
        gathered = tl.load(mass_ptr + state + pages, mask=inside, other=0.0)
        gained = tl.load(page_mass_ptr + here + pages, mask=inside, other=0.0)
        tl.store(mass_ptr + state + pages, gathered + gained, mask=inside)
    if STAMP:
        if policy == RAAS:
            step = tl.load(seq_lens_ptr + row).to(tl.int32) - 1 - tl.load(prompt_lens_ptr + slot)
            count = tl.minimum(step // PAGE_SIZE + 1, tl.load(budgets_ptr + slot) // PAGE_SIZE)
            current = tl.load(current_ptr + slot * HEADS + head)
            candidate = (pages < count) & (pages != current)
            scores = tl.load(page_scores_ptr + here + pages, mask=inside, other=0.0)
            if ALPHA:
                chosen = candidate & (scores > alpha)
            else:
                chosen = top_pages(scores, candidate, tl.load(stamp_pages_ptr + slot))
            tl.store(stamps_ptr + state + pages, step, mask=chosen | (pages == current))
