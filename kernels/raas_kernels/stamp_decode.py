"""Stamps of a step from its page scores, for all layers in one launch; also the mass.

One program per KV head, row and layer; it reads one row of scores and writes one row of timestamps,
or of mass.
"""

import torch
import triton
import triton.language as tl

from raas_kernels.layout import DecodeBatch, EvictionBuffers, StepBuffers, StepOptions
from raas_kernels.select import H2O, RAAS, candidates, top_pages, warps


def stamp_decode(
    step: StepBuffers, batch: DecodeBatch, buffers: EvictionBuffers, options: StepOptions
) -> None:
    """Same contract as `torch_ops.stamp_decode`; asynchronous and CUDA-graph safe.

    Raises:
        ValueError: scores or masses are not contiguous float32 [Y, M, H, N].
    """
    layers, slots, heads, num_pages = buffers.stamps.shape
    rows, max_rows = batch.positions.shape[0], step.page_scores.shape[1]
    if rows == 0:
        return
    expected = (layers, max_rows, heads, num_pages)
    for name in ("page_scores", "page_mass"):
        tensor = getattr(step, name)
        if tensor.shape != expected or tensor.dtype != torch.float32 or not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous float32 {expected}, got {tensor.dtype} "
                f"{tuple(tensor.shape)} with strides {tensor.stride()}"
            )
    _stamp_decode_kernel[(heads, rows, layers)](
        step.page_scores,
        step.page_mass,
        batch.req_pool_indices,
        batch.positions,
        *batch.requests,
        buffers.stamps,
        buffers.births,
        buffers.mass,
        0.0 if options.alpha is None else options.alpha,
        0.0 if options.fade is None else options.fade,
        slots,
        max_rows,
        num_pages,
        HEADS=heads,
        BLOCK_PAGES=triton.next_power_of_2(num_pages),
        PAGE_SIZE=options.page_size,
        ALPHA=options.alpha is not None,
        FADES=options.fade is not None,
        num_warps=warps(num_pages),
    )


@triton.jit
def _stamp_decode_kernel(
    page_scores_ptr,
    page_mass_ptr,
    req_pool_indices_ptr,
    positions_ptr,
    policies_ptr,
    prompt_lens_ptr,
    budgets_ptr,
    stamp_pages_ptr,
    first_steps_ptr,
    stamps_ptr,
    births_ptr,
    mass_ptr,
    alpha,
    fade,
    num_slots,
    max_rows,
    num_pages,
    HEADS: tl.constexpr,
    BLOCK_PAGES: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    ALPHA: tl.constexpr,
    FADES: tl.constexpr,
):
    head = tl.program_id(0)
    row = tl.program_id(1)
    layer = tl.program_id(2).to(tl.int64)
    policy = tl.load(policies_ptr + row)
    slot = tl.load(req_pool_indices_ptr + row).to(tl.int64)
    pages = tl.arange(0, BLOCK_PAGES)
    state = ((layer * num_slots + slot) * HEADS + head) * num_pages
    here = ((layer * max_rows + row) * HEADS + head) * num_pages
    if policy == H2O:
        inside = pages < num_pages
        gathered = tl.load(mass_ptr + state + pages, mask=inside, other=0.0)
        gained = tl.load(page_mass_ptr + here + pages, mask=inside, other=0.0)
        tl.store(mass_ptr + state + pages, gathered + gained, mask=inside)
    if policy == RAAS:
        step = tl.load(positions_ptr + row).to(tl.int32) - tl.load(prompt_lens_ptr + row)
        count = tl.minimum(step // PAGE_SIZE + 1, tl.load(budgets_ptr + row) // PAGE_SIZE)
        known = candidates(births_ptr + state, pages, count, step, PAGE_SIZE)
        known = known & (step >= tl.load(first_steps_ptr + row))
        scores = tl.load(page_scores_ptr + here + pages, mask=known, other=0.0)
        if FADES:
            mass = tl.load(mass_ptr + state + pages, mask=known, other=0.0)
            tl.store(mass_ptr + state + pages, mass * fade + scores, mask=known)
        else:
            if ALPHA:
                best = known & (scores > alpha)
            else:
                best = top_pages(scores, known, tl.load(stamp_pages_ptr + row))
            stamps = tl.zeros_like(pages) + step
            tl.store(stamps_ptr + state + pages, stamps, mask=best)
