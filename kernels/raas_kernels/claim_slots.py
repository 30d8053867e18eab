"""Slots that one decode step writes to, for all layers in one launch.

One program per KV head, row and layer. Its reads follow from one another (the row, its current
page, the page table), and here the layers wait for them together, not in turn. Only where a
saturated request begins a page is the state of all its pages read, 12 bytes each.
"""

import torch
import triton
import triton.language as tl

from raas_kernels.layout import DecodeBatch, EvictionBuffers, StepBuffers, StepOptions
from raas_kernels.select import victim, warps


def claim_slots(
    step: StepBuffers, batch: DecodeBatch, buffers: EvictionBuffers, options: StepOptions
) -> None:
    """Same contract as `torch_ops.claim_slots`; asynchronous and CUDA-graph safe.

    Raises:
        ValueError: targets or places of queries are laid out otherwise, or too few.
    """
    layers, slots, heads, num_pages = buffers.stamps.shape
    rows, targets, tables = batch.positions.shape[0], step.targets, batch.requests
    if rows == 0:
        return
    max_rows = targets.shape[1]
    for name, shape in (
        ("targets", (layers, max_rows, heads)),
        ("query_places", targets.shape[:2]),
    ):
        tensor = getattr(step, name)
        if (
            tensor.shape != shape
            or max_rows < rows
            or tensor.dtype != torch.int32
            or not tensor.is_contiguous()
        ):
            raise ValueError(
                f"{name} must be contiguous int32 {(layers, f'at least {rows}', *shape[2:])}, got "
                f"{tensor.dtype} {tuple(tensor.shape)} with strides {tensor.stride()}"
            )
    _claim_slots_kernel[(heads, rows, layers)](
        targets,
        step.query_places,
        *batch[:5],
        tables.policies,
        tables.prompt_lens,
        tables.budgets,
        buffers.stamps,
        buffers.births,
        buffers.mass,
        buffers.current,
        options.layer_offset,
        options.head_offset,
        slots,
        max_rows,
        num_pages,
        HEADS=heads,
        BLOCK_PAGES=triton.next_power_of_2(num_pages),
        PAGE_SIZE=options.page_size,
        SCORED_STEPS=options.scored_steps,
        BOUND_SCORES=options.bound_scores,
        FADES=options.fade is not None,
        FLOOR=options.floor,
        num_warps=warps(num_pages),
    )


@triton.jit
def _claim_slots_kernel(
    targets_ptr,
    query_places_ptr,
    req_pool_indices_ptr,
    positions_ptr,
    out_cache_loc_ptr,
    kv_indptr_ptr,
    kv_indices_ptr,
    policies_ptr,
    prompt_lens_ptr,
    budgets_ptr,
    stamps_ptr,
    births_ptr,
    mass_ptr,
    current_ptr,
    layer_offset,
    head_offset,
    num_slots,
    max_rows,
    num_pages,
    HEADS: tl.constexpr,
    BLOCK_PAGES: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    SCORED_STEPS: tl.constexpr,
    BOUND_SCORES: tl.constexpr,
    FADES: tl.constexpr,
    FLOOR: tl.constexpr,
):
    head = tl.program_id(0)
    row = tl.program_id(1)
    layer = tl.program_id(2).to(tl.int64)
    # What does not follow from anything else is asked for at once: the time is that of waiting.
    slot = tl.load(req_pool_indices_ptr + row).to(tl.int64)
    policy = tl.load(policies_ptr + row)
    position = tl.load(positions_ptr + row).to(tl.int32)
    prompt_len = tl.load(prompt_lens_ptr + row)
    budget = tl.load(budgets_ptr + row)
    row_start = tl.load(kv_indptr_ptr + row).to(tl.int64)
    target = tl.load(out_cache_loc_ptr + row).to(tl.int32)
    owner = (layer * num_slots + slot) * HEADS + head
    current = tl.load(current_ptr + owner)

    step = position - prompt_len
    evicts = policy != 0
    begins = evicts & (step % PAGE_SIZE == 0)
    saturated = evicts & (step >= budget)
    state = owner * num_pages

    # The page of this step: the next one while growing, then a victim, then the same again.
    page = tl.where(saturated, current, step // PAGE_SIZE)
    if saturated & begins:
        pages = tl.arange(0, BLOCK_PAGES)
        present = pages < budget // PAGE_SIZE
        stamps = tl.load(stamps_ptr + state + pages, mask=present, other=0)
        births = tl.load(births_ptr + state + pages, mask=present, other=0)
        mass = tl.load(mass_ptr + state + pages, mask=present, other=0.0)
        page = victim(
            policy, step, budget, layer + layer_offset, head + head_offset,
            stamps, births, mass, pages, present, FADES, FLOOR,
        )  # fmt: skip
    place = row_start + prompt_len + page * PAGE_SIZE + step % PAGE_SIZE
    in_place = tl.load(kv_indices_ptr + place, mask=saturated, other=0).to(tl.int32)
    here = (layer * max_rows + row) * HEADS + head
    tl.store(targets_ptr + here, tl.where(saturated, in_place, target))
    if BOUND_SCORES & (head == 0):
        # Of a padded row whatever its position is; it has a place of its own.
        query_place = slot.to(tl.int32) * SCORED_STEPS + tl.maximum(step, 0) % SCORED_STEPS
        tl.store(query_places_ptr + layer * max_rows + row, query_place)
    if evicts:
        tl.store(stamps_ptr + state + page, step)
        if begins:
            tl.store(current_ptr + owner, page)
            tl.store(births_ptr + state + page, step)
            tl.store(mass_ptr + state + page, 0.0)
