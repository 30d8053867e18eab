"""Slots that one decode step writes to, for all layers in one launch.

One program per row and layer, a lane for each KV head. Its reads follow from one another (the row,
its victim, the page table), and here the layers wait for them together, not in turn.
"""

import triton
import triton.language as tl

from raas_kernels.buffers import TABLES, EvictionBuffers, StepBuffers, require_rows
from raas_kernels.layout import PAPER_PAGE, DecodeBatch, StepOptions
from raas_kernels.record import agreed
from raas_kernels.select import RAAS, RAAS_PAPER, RANDOM, WINDOW, mixed

_PAPER_PAGE = tl.constexpr(PAPER_PAGE)


def claim_slots(
    step: StepBuffers, batch: DecodeBatch, buffers: EvictionBuffers, options: StepOptions
) -> None:
    """As of `raas_kernels.ops.Ops.claim_slots`; asynchronous and CUDA-graph safe.

    Raises:
        ValueError: a tensor is laid out otherwise, or too small.
    """
    rows = batch.positions.shape[0]
    if rows == 0:
        return
    sizes = agreed(step, buffers)
    require_rows(step, rows)
    _claim_slots_kernel[(rows, sizes["Y"])](
        **step.pointers("targets", "places"),
        **batch.pointers("req_pool_indices", "positions", "out_cache_loc"),
        **batch.pointers("kv_indptr", "kv_indices"),
        **batch.requests.pointers("policies", "prompt_lens", "budgets", "periods"),
        **buffers.pointers("births", "weights", "victims"),
        layer_offset=options.layer_offset,
        head_offset=options.head_offset,
        request_rows=sizes["R"],
        max_rows=sizes["M"],
        most=sizes["N"],
        HEADS=sizes["H"],
        BLOCK_HEADS=triton.next_power_of_2(sizes["H"]),
        VICTIMS=sizes["V"],
        num_warps=1,
    )


@triton.jit(do_not_specialize_on_alignment=TABLES)
def _claim_slots_kernel(
    targets_ptr,
    places_ptr,
    req_pool_indices_ptr,
    positions_ptr,
    out_cache_loc_ptr,
    kv_indptr_ptr,
    kv_indices_ptr,
    policies_ptr,
    prompt_lens_ptr,
    budgets_ptr,
    periods_ptr,
    births_ptr,
    weights_ptr,
    victims_ptr,
    layer_offset,
    head_offset,
    request_rows,
    max_rows,
    most,
    HEADS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    VICTIMS: tl.constexpr,
):
    row = tl.program_id(0)
    layer = tl.program_id(1).to(tl.int64)
    heads = tl.arange(0, BLOCK_HEADS)
    inside = heads < HEADS
    # What does not follow from anything else is asked for at once: the time is that of waiting.
    request = tl.load(req_pool_indices_ptr + row).to(tl.int64)
    policy = tl.load(policies_ptr + row)
    position = tl.load(positions_ptr + row).to(tl.int32)
    prompt_len = tl.load(prompt_lens_ptr + row)
    budget = tl.load(budgets_ptr + row)
    period = tl.load(periods_ptr + row)
    row_start = tl.load(kv_indptr_ptr + row).to(tl.int64)
    target = tl.load(out_cache_loc_ptr + row).to(tl.int32)

    step = position - prompt_len
    evicts = policy != 0
    saturated = evicts & (step >= budget)
    owners = (layer * request_rows + request) * HEADS + heads
    place = tl.zeros((BLOCK_HEADS,), tl.int32) + step
    if saturated:
        if policy == WINDOW:
            place = tl.zeros((BLOCK_HEADS,), tl.int32) + step % budget
        elif policy == RANDOM:
            drawn = mixed(step, layer + layer_offset, heads + head_offset)
            place = (drawn % budget.to(tl.uint32)).to(tl.int32)
        else:
            turn = step % period if policy == RAAS else 0
            place = tl.load(victims_ptr + owners * VICTIMS + turn, mask=inside, other=0)
            if policy == RAAS_PAPER:
                place = place * _PAPER_PAGE + step % _PAPER_PAGE
    in_place = tl.load(
        kv_indices_ptr + row_start + prompt_len + place, mask=inside & saturated, other=0
    )
    here = (layer * max_rows + row) * HEADS + heads
    tl.store(targets_ptr + here, tl.where(saturated, in_place.to(tl.int32), target), mask=inside)
    tl.store(places_ptr + here, tl.where(evicts, place, -1), mask=inside)
    if evicts:
        born = owners * most + place
        tl.store(births_ptr + born, step, mask=inside)
        weight = tl.where(policy == RAAS_PAPER, step, 0).to(tl.float32)
        tl.store(weights_ptr + born, weight, mask=inside)
