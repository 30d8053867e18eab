"""Stamps of some steps from their page scores, for all layers in one launch; also the mass.

One program per KV head, row and layer; it reads one row of scores for each step and writes one row
of timestamps, or of mass.
"""

import torch
import triton
import triton.language as tl

from raas_kernels.layout import DecodeBatch, EvictionBuffers, StepBuffers, StepOptions
from raas_kernels.select import H2O, RAAS, page_shares, top_pages, warps

_LOG2_E = 1.4426950408889634


def stamp_decode(
    step: StepBuffers, batch: DecodeBatch, buffers: EvictionBuffers, options: StepOptions
) -> None:
    """Same contract as `torch_ops.stamp_decode`; asynchronous and CUDA-graph safe.

    Raises:
        ValueError: scores are not contiguous float32 [Y, M, T, H, N], or masses [Y, M, H, N].
    """
    layers, slots, heads, num_pages = buffers.stamps.shape
    rows, max_rows = batch.positions.shape[0], step.page_scores.shape[1]
    if rows == 0:
        return
    scored = (layers, max_rows, options.scored_steps, heads, num_pages)
    shapes: dict[str, tuple[int, ...]] = {"page_scores": scored}
    if not options.bound_scores:
        shapes["page_mass"] = (layers, max_rows, heads, num_pages)
    for name, expected in shapes.items():
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
        options.scaling * _LOG2_E,
        slots,
        max_rows,
        num_pages,
        HEADS=heads,
        BLOCK_PAGES=triton.next_power_of_2(num_pages),
        PAGE_SIZE=options.page_size,
        BOUND_SCORES=options.bound_scores,
        ALPHA=options.alpha is not None,
        FADES=options.fade is not None,
        SCORED_STEPS=options.scored_steps,
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
    scaling_log2,
    num_slots,
    max_rows,
    num_pages,
    HEADS: tl.constexpr,
    BLOCK_PAGES: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BOUND_SCORES: tl.constexpr,
    ALPHA: tl.constexpr,
    FADES: tl.constexpr,
    SCORED_STEPS: tl.constexpr,
):
    head = tl.program_id(0)
    row = tl.program_id(1)
    layer = tl.program_id(2).to(tl.int64)
    policy = tl.load(policies_ptr + row)
    slot = tl.load(req_pool_indices_ptr + row).to(tl.int64)
    pages = tl.arange(0, BLOCK_PAGES)
    state = ((layer * num_slots + slot) * HEADS + head) * num_pages
    here = layer * max_rows + row
    if not BOUND_SCORES:
        if policy == H2O:
            inside = pages < num_pages
            gathered = tl.load(mass_ptr + state + pages, mask=inside, other=0.0)
            gained = page_mass_ptr + (here * HEADS + head) * num_pages + pages
            gained = tl.load(gained, mask=inside, other=0.0)
            tl.store(mass_ptr + state + pages, gathered + gained, mask=inside)
    last = tl.load(positions_ptr + row).to(tl.int32) - tl.load(prompt_lens_ptr + row)
    if (policy == RAAS) & ((last + 1) % SCORED_STEPS == 0):
        count = tl.minimum(last // PAGE_SIZE + 1, tl.load(budgets_ptr + row) // PAGE_SIZE)
        present = pages < count
        # A page that these steps filled is stamped where its tokens are stored.
        first = last + 1 - SCORED_STEPS
        births = tl.load(births_ptr + state + pages, mask=present, other=0)
        candidate = present & (births < first // PAGE_SIZE * PAGE_SIZE)
        first_known = tl.load(first_steps_ptr + row)
        stamp_pages = tl.load(stamp_pages_ptr + row)
        mass = tl.load(mass_ptr + state + pages, mask=candidate, other=0.0)
        stamps = tl.load(stamps_ptr + state + pages, mask=candidate, other=0)
        for place in range(SCORED_STEPS):
            step = first + place
            known = candidate & (step >= first_known)
            scores = page_scores_ptr + ((here * SCORED_STEPS + place) * HEADS + head) * num_pages
            scores = tl.load(scores + pages, mask=known, other=0.0)
            if FADES:
                if BOUND_SCORES:
                    scores = page_shares(scores, known, scaling_log2)
                mass = tl.where(known, mass * fade + scores, mass)
            elif ALPHA:
                stamps = tl.where(known & (scores > alpha), step, stamps)
            else:
                stamps = tl.where(top_pages(scores, known, stamp_pages), step, stamps)
        if FADES:
            tl.store(mass_ptr + state + pages, mass, mask=candidate)
        else:
            tl.store(stamps_ptr + state + pages, stamps, mask=candidate)
