"""The ops in plain torch: what a machine without Triton runs, and what the kernels are held to.

All rows and heads at once, no loop over tokens. Integers (victims, stamps, slots) are equal to the
kernels' bit for bit; bounds too, since minimum and maximum do not round.
"""

import torch

from raas_kernels.layout import DecodeBatch, EvictionBuffers, Policy, RequestTables, StepOptions

_FAR = 2**31 - 1


def store_decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: DecodeBatch,
    tables: RequestTables,
    buffers: EvictionBuffers,
    options: StepOptions,
) -> None:
    """Stores the token of one decode step, in place of an old one where the budget is full.

    Per row and KV head: choose a victim page if a new page begins, write k and v, update the
    page's bounds and, with `StepOptions.bound_scores`, score all pages and stamp the top ones.
    Mutates the caches and the buffers; the rows of other requests and every slot below the prompt
    length stay as they are.

    Args:
        q: [B, Hq, D] queries after RoPE; query heads of one KV head are neighbours.
        k: [B, H, D] keys after RoPE.
        v: [B, H, D] values.
        key_cache: [S, H, D] keys of the layer.
        value_cache: [S, H, D] values of the layer.
        batch: Rows of the step.
        tables: What the requests were admitted with.
        buffers: Eviction state of the layer.
        options: Server-wide choices.
    """
    slots = batch.req_pool_indices.long()
    evicting = tables.policies[slots] != Policy.DENSE
    dense = ~evicting
    locations = batch.out_cache_loc.long()
    key_cache[locations[dense]] = k[dense].to(key_cache.dtype)
    value_cache[locations[dense]] = v[dense].to(value_cache.dtype)
    if not bool(evicting.any()):
        return

    slots, heads = slots[evicting], torch.arange(k.shape[1], device=k.device)
    step = (batch.seq_lens.long()[evicting] - 1) - tables.prompt_lens[slots]
    pages = _advance(slots, step, tables, buffers, options)
    offsets = (step % options.page_size)[:, None]

    columns = tables.prompt_lens[slots, None] + pages * options.page_size + offsets
    saturated = (step >= tables.budgets[slots])[:, None]
    in_place = batch.req_to_token[slots[:, None], columns.long()].long()
    targets = torch.where(saturated, in_place, locations[evicting, None])
    keys, values = k[evicting].to(key_cache.dtype), v[evicting].to(value_cache.dtype)
    key_cache[targets, heads] = keys
    value_cache[targets, heads] = values

    if not options.bound_scores:
        return
    _extend_bounds(slots, pages, offsets == 0, keys, buffers)
    raas = tables.policies[slots] == Policy.RAAS
    if bool(raas.any()):
        scores = bound_scores(q[evicting][raas], slots[raas], buffers)
        _stamp_top(scores, slots[raas], step[raas], pages[raas], tables, buffers, options)


def stamp_decode(
    page_scores: torch.Tensor,
    page_mass: torch.Tensor,
    batch: DecodeBatch,
    tables: RequestTables,
    buffers: EvictionBuffers,
    options: StepOptions,
    alpha: float | None,
) -> None:
    """Stamps pages by exact scores, after attention; also gathers the mass for H2O.

    Args:
        page_scores: [B, H, N] float32. Largest attention probability of a token of the page.
        page_mass: [B, H, N] float32. Sum of the probabilities of the page's tokens.
        batch: Rows of the step, as given to `store_decode`.
        tables: What the requests were admitted with.
        buffers: Eviction state of the layer; stamps and mass are updated.
        options: Server-wide choices.
        alpha: Stamp the pages that score above it; None stamps the top `stamp_pages` instead.
    """
    slots = batch.req_pool_indices.long()
    step = (batch.seq_lens.long() - 1) - tables.prompt_lens[slots]
    h2o = tables.policies[slots] == Policy.H2O
    buffers.mass[slots[h2o]] += page_mass[h2o]
    raas = tables.policies[slots] == Policy.RAAS
    if options.bound_scores or not bool(raas.any()):
        return
    slots, step, scores = slots[raas], step[raas], page_scores[raas]
    pages = buffers.current[slots].long()
    if alpha is None:
        _stamp_top(scores, slots, step, pages, tables, buffers, options)
        return
    chosen = (scores > alpha) & _present(step, tables.budgets[slots], scores, options)[:, None]
    chosen |= torch.arange(scores.shape[2], device=scores.device) == pages[:, :, None]
    now = step.int()[:, None, None].expand_as(scores)
    buffers.stamps[slots] = torch.where(chosen, now, buffers.stamps[slots])


def bound_scores(q: torch.Tensor, slots: torch.Tensor, buffers: EvictionBuffers) -> torch.Tensor:
    """Returns Quest's upper bound of q·k over each page, the maximum over a KV head's queries.

    Args:
        q: [B, Hq, D] queries after RoPE.
        slots: [B] int64 request slots.
        buffers: Eviction state of the layer.

    Returns:
        [B, H, N] float32, without the softmax scale, which does not change the order.
    """
    heads = buffers.current.shape[1]
    query = q.float().reshape(q.shape[0], heads, -1, 1, q.shape[2])
    low = buffers.key_min[slots].float()[:, :, None]
    high = buffers.key_max[slots].float()[:, :, None]
    return torch.maximum(query * low, query * high).sum(-1).amax(2)


def victims(
    slots: torch.Tensor,
    step: torch.Tensor,
    tables: RequestTables,
    buffers: EvictionBuffers,
    options: StepOptions,
) -> torch.Tensor:
    """Returns the page that each head gives up: [B, H] int64.

    RaaS takes the oldest timestamp, ties to the older page; the window the oldest page; random a
    hash of step, layer, head and page; H2O the least mass outside the newest half of the budget.
    """
    births = buffers.births[slots].long()
    pages = torch.arange(births.shape[2], device=births.device)
    policy = tables.policies[slots, None, None]
    key = (buffers.stamps[slots].long() << 31) | births
    key = torch.where(policy == Policy.WINDOW, births, key)
    key = torch.where(policy == Policy.RANDOM, _hash(step, births, options) << 31 | births, key)
    recent = births > (step - tables.budgets[slots] // 2)[:, None, None]
    # Non-negative floats sort like their bits.
    mass = buffers.mass[slots].view(torch.int32).long()
    heavy = (recent.long() << 62) | (mass << 31) | births
    key = torch.where(policy == Policy.H2O, heavy, key)
    present = pages < (tables.budgets[slots] // options.page_size)[:, None, None]
    return torch.where(present, key, torch.iinfo(torch.int64).max).argmin(2)


def _advance(
    slots: torch.Tensor,
    step: torch.Tensor,
    tables: RequestTables,
    buffers: EvictionBuffers,
    options: StepOptions,
) -> torch.Tensor:
    """Moves each head to the page of this step: [B, H]; a page that begins is born and stamped."""
    heads = buffers.current.shape[1]
    growing = (step < tables.budgets[slots])[:, None]
    begins = (step % options.page_size == 0)[:, None]
    following = torch.where(
        begins,
        victims(slots, step, tables, buffers, options),
        buffers.current[slots].long(),
    )
    pages = torch.where(growing, (step // options.page_size)[:, None].expand(-1, heads), following)
    buffers.current[slots] = pages.int()
    row, head = slots[:, None].expand_as(pages), torch.arange(heads, device=pages.device)
    now = step.int()[:, None].expand_as(pages)
    buffers.stamps[row, head, pages] = now
    born = begins.expand_as(pages)
    buffers.births[row, head, pages] = torch.where(born, now, buffers.births[row, head, pages])
    buffers.mass[row, head, pages] = torch.where(born, 0.0, buffers.mass[row, head, pages])
    return pages


def _extend_bounds(
    slots: torch.Tensor,
    pages: torch.Tensor,
    begins: torch.Tensor,
    keys: torch.Tensor,
    buffers: EvictionBuffers,
) -> None:
    row, head = slots[:, None].expand_as(pages), torch.arange(pages.shape[1], device=pages.device)
    at = (row, head, pages)
    fresh = begins[:, :, None]
    low, high = buffers.key_min[at], buffers.key_max[at]
    buffers.key_min[at] = torch.where(fresh, keys, torch.minimum(low, keys))
    buffers.key_max[at] = torch.where(fresh, keys, torch.maximum(high, keys))


def _stamp_top(
    scores: torch.Tensor,
    slots: torch.Tensor,
    step: torch.Tensor,
    pages: torch.Tensor,
    tables: RequestTables,
    buffers: EvictionBuffers,
    options: StepOptions,
) -> None:
    """Stamps the best complete pages; equal scores go to the lower page index."""
    index = torch.arange(scores.shape[2], device=scores.device)
    candidate = _present(step, tables.budgets[slots], scores, options)[:, None]
    candidate = candidate & (index != pages[:, :, None])
    ranked = torch.where(candidate, scores, float("-inf"))
    order = ranked.argsort(dim=2, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(2, order, index.expand_as(order))
    chosen = candidate & (rank < tables.stamp_pages[slots][:, None, None])
    now = step.int()[:, None, None].expand_as(scores)
    buffers.stamps[slots] = torch.where(chosen, now, buffers.stamps[slots])


def _present(
    step: torch.Tensor, budgets: torch.Tensor, scores: torch.Tensor, options: StepOptions
) -> torch.Tensor:
    """Tells which pages hold tokens: [B, N] bool."""
    count = torch.minimum(step // options.page_size + 1, budgets // options.page_size)
    return torch.arange(scores.shape[2], device=scores.device) < count[:, None]


def _hash(step: torch.Tensor, like: torch.Tensor, options: StepOptions) -> torch.Tensor:
    """Mixes step, layer, head and page to 32 bits: [B, H, N] int64, the same on every machine."""
    page = torch.arange(like.shape[2], device=like.device)
    head = torch.arange(like.shape[1], device=like.device)[:, None] + options.head_offset
    x = step[:, None, None] * 0x9E3779B1 + options.layer_id * 0x85EBCA77 + head * 0xC2B2AE3D + page
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = x & 0xFFFFFFFF
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 16)
