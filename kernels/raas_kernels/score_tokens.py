"""Scores the generated tokens of all due rows and chooses what they give up, in one launch.

A score is a product of a key with a vector for each query head: for raas the mean of the recent
queries, and with the square of its distance from the mean key their variance; for raas-paper and
h2o this step's query. Either way the keys of the budget are read once, which is the cost.

The programs are as many as a GPU runs at a time. Each takes one KV head of one row and layer after
the other, and keeps its logits in scratch of its own until it has chosen.
"""

import triton
import triton.language as tl

from raas_kernels.buffers import TABLES, EvictionBuffers, ScoreScratch, StepBuffers, require_rows
from raas_kernels.choose_victims import h2o_victim, paper_victim, raas_victims
from raas_kernels.due_rows import list_due_rows
from raas_kernels.layout import (
    ALIGNMENT,
    BONUS,
    LARGEST_SPREAD,
    LEAST_SPREAD,
    DecodeBatch,
    KeyCaches,
    StepOptions,
)
from raas_kernels.record import agreed
from raas_kernels.score_launch import launch_options
from raas_kernels.select import H2O, RAAS, RAAS_PAPER

_TILE_TOKENS = 64  # of 16-bit numbers; of wider ones fewer fit
_LEAST_COLUMNS = 16  # of a matrix product
_LOGITS = 2048  # that are looked at together, once all are there
_ALIGNMENT = tl.constexpr(ALIGNMENT)


def score_tokens(
    scratch: ScoreScratch,
    keys: KeyCaches,
    step: StepBuffers,
    batch: DecodeBatch,
    buffers: EvictionBuffers,
    options: StepOptions,
) -> None:
    """As of `raas_kernels.ops.Ops.score_tokens`; asynchronous and CUDA-graph safe.

    Raises:
        ValueError: a tensor is laid out otherwise.
    """
    rows, cache = batch.positions.shape[0], keys.layers[0]
    if rows == 0:
        return
    sizes = agreed(step, scratch, buffers)
    require_rows(step, rows)
    keys.require(sizes["Y"], sizes["D"], step.queries.dtype)
    list_due_rows(scratch, batch)
    layers, heads, head_dim, most = (sizes[letter] for letter in ("Y", "H", "D", "N"))
    group, block_tokens = sizes["Hq"] // heads, triton.next_power_of_2(most)
    members = triton.next_power_of_2(group)
    _score_tokens_kernel[(min(sizes["G"], rows * layers * heads),)](
        **scratch.pointers(),
        pointers_ptr=keys.pointers,
        key_cache_ptr=cache,
        key_scales_ptr=keys.scales,
        **step.pointers("queries"),
        **batch.pointers("req_pool_indices", "positions", "kv_indptr", "kv_indices"),
        **batch.requests.pointers("policies", "prompt_lens", "budgets", "periods"),
        **buffers.pointers(),
        scaling=options.scaling,
        curvature=0.5 * options.scaling**2,
        bonus=BONUS,
        least_spread=LEAST_SPREAD,
        largest_spread=LARGEST_SPREAD,
        request_rows=sizes["R"],
        num_layers=layers,
        max_rows=sizes["M"],
        most=most,
        stride_key_cache=cache.stride(0),
        HEADS=heads,
        GROUP=group,
        BLOCK_GROUP=members,
        COLUMNS=max(_LEAST_COLUMNS, members),
        HEAD_DIM=head_dim,
        BLOCK_DIM=max(16, triton.next_power_of_2(head_dim)),
        TILE_TOKENS=_TILE_TOKENS * 2 // step.queries.element_size(),
        TOKENS=max(16, min(_LOGITS // members, block_tokens)),
        BLOCK_TOKENS=block_tokens,
        VICTIMS=sizes["V"],
        # The interpreter would multiply the bits of bfloat16.
        WIDE=cache.device.type == "cpu" or step.queries.element_size() > 2,
        **launch_options(cache, block_tokens),
    )


@triton.jit(do_not_specialize_on_alignment=TABLES)
def _score_tokens_kernel(
    due_rows_ptr,
    due_count_ptr,
    logits_ptr,
    scores_ptr,
    pointers_ptr,
    key_cache_ptr,
    key_scales_ptr,
    queries_ptr,
    req_pool_indices_ptr,
    positions_ptr,
    kv_indptr_ptr,
    kv_indices_ptr,
    policies_ptr,
    prompt_lens_ptr,
    budgets_ptr,
    periods_ptr,
    births_ptr,
    weights_ptr,
    value_norms_ptr,
    victims_ptr,
    query_means_ptr,
    query_variances_ptr,
    key_means_ptr,
    key_variances_ptr,
    scaling,
    curvature,
    bonus,
    least_spread,
    largest_spread,
    request_rows,
    num_layers,
    max_rows,
    most,
    stride_key_cache,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    VICTIMS: tl.constexpr,
    WIDE: tl.constexpr,
):
    key_type = tl.float32 if WIDE else queries_ptr.dtype.element_ty
    square_type = tl.float32 if WIDE else tl.bfloat16  # whose range is that of float32
    logits_ptr += tl.program_id(0).to(tl.int64) * (most + 1) * BLOCK_GROUP
    normaliser_ptr = logits_ptr + most * BLOCK_GROUP  # behind the logits of all tokens
    scores_ptr += tl.program_id(0).to(tl.int64) * most
    dims, columns = tl.arange(0, BLOCK_DIM), tl.arange(0, COLUMNS)
    inside, asked = dims < HEAD_DIM, columns < GROUP
    asked_dims = asked[None, :] & inside[:, None]
    count = tl.load(due_count_ptr) * num_layers * HEADS
    for item in range(tl.program_id(0), count, tl.num_programs(0)):
        head = item % HEADS
        layer = (item // HEADS % num_layers).to(tl.int64)
        row = tl.load(due_rows_ptr + item // HEADS // num_layers)
        request = tl.load(req_pool_indices_ptr + row).to(tl.int64)
        policy = tl.load(policies_ptr + row)
        prompt_len = tl.load(prompt_lens_ptr + row)
        budget = tl.load(budgets_ptr + row)
        step = tl.load(positions_ptr + row).to(tl.int32) - prompt_len
        held = tl.minimum(step + 1, budget)
        resident = kv_indices_ptr + tl.load(kv_indptr_ptr + row).to(tl.int64)
        owner = layer * request_rows + request
        # Only the type of this pointer is used: the layers' caches are tensors of their own. That
        # they are aligned cannot be seen, and without it keys would be loaded one by one.
        cache = tl.load(pointers_ptr + layer).to(tl.pointer_type(key_cache_ptr.dtype.element_ty))
        cache = tl.multiple_of(cache, _ALIGNMENT) + head * HEAD_DIM

        of_query = (head * GROUP + columns[None, :]) * HEAD_DIM + dims[:, None]
        if policy == RAAS:
            moments = owner * (HEADS * GROUP * HEAD_DIM) + of_query
            linear = tl.load(query_means_ptr + moments, mask=asked_dims, other=0.0)
            square = tl.load(query_variances_ptr + moments, mask=asked_dims, other=0.0)
            means = (owner * HEADS + head) * HEAD_DIM + dims
            origin = tl.load(key_means_ptr + means, mask=inside, other=0.0)
            of_keys = tl.load(key_variances_ptr + means, mask=inside, other=0.0)
            common = tl.sum(square * of_keys[:, None], axis=0) * curvature
            spread = tl.maximum(bonus / tl.maximum(common, 1e-30), least_spread)
            square *= tl.minimum(spread, largest_spread)[None, :]
        else:
            queries = (layer * max_rows + row) * (HEADS * GROUP * HEAD_DIM) + of_query
            linear = tl.load(queries_ptr + queries, mask=asked_dims, other=0.0).to(tl.float32)
            square = tl.zeros((BLOCK_DIM, COLUMNS), tl.float32)
            origin = tl.zeros((BLOCK_DIM,), tl.float32)
        if key_scales_ptr is not None:
            key_scale = tl.load(key_scales_ptr + layer)
            linear, square = linear * key_scale, square * key_scale * key_scale
            origin /= key_scale
        linear = (linear * scaling).to(key_type)
        square = (square * curvature).to(square_type)

        peak = tl.full((COLUMNS,), -1e38, tl.float32)
        total = tl.zeros((COLUMNS,), tl.float32)
        # Only h2o asks for shares of all tokens, the prompt's too; nobody chooses among those.
        first = tl.where(policy == H2O, 0, prompt_len // TILE_TOKENS * TILE_TOKENS)
        for begin in range(first, prompt_len + held, TILE_TOKENS):
            index = begin + tl.arange(0, TILE_TOKENS)
            present = index < prompt_len + held
            present = present & ((index >= prompt_len) | (policy == H2O))
            slots = tl.load(resident + index, mask=present, other=0).to(tl.int64)
            mask = present[:, None] & inside[None, :]
            key = tl.load(
                cache + slots[:, None] * stride_key_cache + dims[None, :], mask=mask, other=0.0
            )
            # The keys as they are, from shared memory: others would take registers, and programs.
            logits = tl.dot(key.to(key_type), linear, input_precision="ieee")
            apart = key.to(tl.float32) - origin[None, :]
            squared = (apart * apart).to(square_type)
            logits = tl.dot(squared, square, logits, input_precision="ieee")
            here = (index - prompt_len)[:, None] * BLOCK_GROUP + columns[None, :]
            generated = (present & (index >= prompt_len))[:, None] & asked[None, :]
            tl.store(logits_ptr + here, logits, mask=generated)
            logits = tl.where(present[:, None], logits, -1e38)
            higher = tl.maximum(peak, tl.max(logits, axis=0))
            grown = tl.sum(tl.exp(logits - higher[None, :]), axis=0)
            total = total * tl.exp(peak - higher) + grown
            peak = higher
        # A column that no query head has weighs nothing.
        normaliser = tl.where(asked, peak + tl.log(total), 0.0)
        tl.store(normaliser_ptr + columns, normaliser, mask=columns < BLOCK_GROUP)

        tl.debug_barrier()  # other threads wrote the logits
        state = (owner * HEADS + head) * most
        victims = victims_ptr + (owner * HEADS + head) * VICTIMS
        if policy == RAAS:
            raas_victims(
                logits_ptr, normaliser_ptr, scores_ptr, births_ptr + state, weights_ptr + state,
                value_norms_ptr + state, victims, step, budget, held, tl.load(periods_ptr + row),
                GROUP, BLOCK_GROUP, TOKENS, BLOCK_TOKENS,
            )  # fmt: skip
        elif policy == RAAS_PAPER:
            paper_victim(
                logits_ptr, scores_ptr, births_ptr + state, weights_ptr + state, victims,
                step, budget, held, GROUP, BLOCK_GROUP, TOKENS, BLOCK_TOKENS,
            )  # fmt: skip
        else:
            h2o_victim(
                logits_ptr, normaliser_ptr, births_ptr + state, weights_ptr + state, victims,
                step, budget, held, GROUP, BLOCK_GROUP, TOKENS, BLOCK_TOKENS,
            )  # fmt: skip
        tl.debug_barrier()  # the next head overwrites the logits
