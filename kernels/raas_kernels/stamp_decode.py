"""Stamps of a step from its page scores, for all layers in one launch; also the mass.

One warp per KV head, row and layer; it reads one row of scores and writes one row of timestamps, or
of mass.
"""

import torch
import triton
import triton.language as tl

from raas_kernels.layout import DecodeBatch, EvictionBuffers, StepBuffers, StepOptions
from raas_kernels.select import H2O, RAAS, page_shares, top_pages

_LOG2_E = 1.4426950408889634


def stamp_decode(
    step: StepBuffers, batch: DecodeBatch, buffers: EvictionBuffers, options: StepOptions
) -> None:
    """Same contract as `torch_ops.stamp_decode`; asynchronous and CUDA-graph safe.

    Raises:
        ValueError: scores or mass are not contiguous float32 [Y, M, H, N].
    """
    layers, slots, heads, num_pages = buffers.stamps.shape
    rows, max_rows = batch.positions.shape[0], step.page_scores.shape[1]
    if rows == 0:
        return
    used = ("page_scores",) if options.bound_scores else ("page_scores", "page_mass")
    for name in used:
        tensor = getattr(step, name)
        expected = (layers, max_rows, heads, num_pages)
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
        buffers.mass,
        buffers.current,
        0.0 if options.alpha is None else options.alpha,
        0.0 if options.decay is None else options.decay,
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
        DECAY=options.decay is not None,
        FADES=options.fade is not None,
        STAMP_INTERVAL=options.stamp_interval,
        num_warps=1,
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
    stamps_ptr,
    mass_ptr,
    current_ptr,
    alpha,
    decay,
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
    DECAY: tl.constexpr,
    FADES: tl.constexpr,
    STAMP_INTERVAL: tl.constexpr,
):
    head = tl.program_id(0)
    row = tl.program_id(1)
    layer = tl.program_id(2).to(tl.int64)
    policy = tl.load(policies_ptr + row)
    slot = tl.load(req_pool_indices_ptr + row).to(tl.int64)
    pages = tl.arange(0, BLOCK_PAGES)
    owner = (layer * num_slots + slot) * HEADS + head
    state = owner * num_pages
    here = ((layer * max_rows + row) * HEADS + head) * num_pages
    if not BOUND_SCORES:
        if policy == H2O:
            inside = pages < num_pages
            gathered = tl.load(mass_ptr + state + pages, mask=inside, other=0.0)
            gained = tl.load(page_mass_ptr + here + pages, mask=inside, other=0.0)
            tl.store(mass_ptr + state + pages, gathered + gained, mask=inside)
    step = tl.load(positions_ptr + row).to(tl.int32) - tl.load(prompt_lens_ptr + row)
    if (policy == RAAS) & ((step + 1) % STAMP_INTERVAL == 0):
        count = tl.minimum(step // PAGE_SIZE + 1, tl.load(budgets_ptr + row) // PAGE_SIZE)
        # The page being filled is stamped when its token is stored; it takes no other's place.
        candidate = (pages < count) & (pages != tl.load(current_ptr + owner))
        scores = tl.load(page_scores_ptr + here + pages, mask=pages < count, other=0.0)
        stamp = tl.full((BLOCK_PAGES,), 0, tl.int32) + step
        if FADES:
            if BOUND_SCORES:
                scores = page_shares(scores, candidate, scaling_log2)
            mass = tl.load(mass_ptr + state + pages, mask=candidate, other=0.0)
            tl.store(mass_ptr + state + pages, mass * fade + scores, mask=candidate)
        else:
            if ALPHA:
                chosen = candidate & (scores > alpha)
            elif DECAY:
                chosen = candidate & (scores > 0)
                age = tl.floor(decay * tl.log(tl.where(chosen, scores, 1.0)))
                before = tl.load(stamps_ptr + state + pages, mask=chosen, other=0)
                stamp = tl.maximum(before, step + age.to(tl.int32))
            else:
                chosen = top_pages(scores, candidate, tl.load(stamp_pages_ptr + row))
            tl.store(stamps_ptr + state + pages, stamp, mask=chosen)
