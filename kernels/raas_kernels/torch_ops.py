"""The ops in plain torch: what a machine without Triton runs, and what the kernels are held to.

All rows and heads at once, no loop over tokens. Integers (victims, stamps, slots) are equal to the
kernels' bit for bit; bounds too, since minimum and maximum do not round. A mass that fades may
differ in its last bit, since a kernel fuses multiplication and addition, unless `StepOptions.fade`
is a power of two.
"""

from typing import NamedTuple

import torch

from raas_kernels.layout import DecodeBatch, EvictionBuffers, Policy, StepBuffers, StepOptions


def claim_slots(
    step: StepBuffers, batch: DecodeBatch, buffers: EvictionBuffers, options: StepOptions
) -> None:
    """Finds the slots that one decode step writes to, in all layers: a victim's where budgets end.

    Called once before the first layer. Per layer, row and KV head: choose a victim where a new page
    begins, reset its state, stamp the page being filled, and leave in ``step.targets`` the slot
    that SGLang allocated or, for a saturated row, one of the page's own. Mutates ``step`` and the
    buffers, all but the bounds; the state of dense rows and of other requests stays as it is.

    Args:
        step: ``targets`` of the batch's rows are written.
        batch: Rows of the step.
        buffers: Eviction state of all layers.
        options: Server-wide choices.
    """
    rows = _rows(batch, batch.requests.policies != Policy.DENSE)
    saturated = rows.step >= rows.budgets
    places = batch.kv_indptr.long()[rows.row] + rows.prompt_lens + rows.step % options.page_size
    for layer in range(buffers.stamps.shape[0]):
        pages = _advance(rows, buffers.layer(layer), layer + options.layer_offset, options)
        targets = batch.out_cache_loc.int()[:, None].repeat(1, pages.shape[1])
        in_place = (places[:, None] + pages * options.page_size)[saturated]
        targets[rows.row[saturated]] = batch.kv_indices[in_place].int()
        step.targets[layer, : len(targets)] = targets


def store_decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    step: StepBuffers,
    options: StepOptions,
) -> None:
    """Stores the token of one decode step where `claim_slots` said.

    Called for each layer before its attention. Writes k and v to the caches and, with
    `StepOptions.bound_scores`, q and k to ``step`` for `score_pages`: of every row, dense ones
    too, since a look at the policy would take longer than the copy.

    Args:
        q: [B, Hq, D] queries after RoPE; query heads of one KV head are neighbours.
        k: [B, H, D] keys after RoPE.
        v: [B, H, D] values.
        key_cache: [S, H, D] keys of the layer.
        value_cache: [S, H, D] values of the layer.
        step: Buffers of the layer; ``targets`` are read, ``queries`` and ``keys`` written.
        options: Server-wide choices.
    """
    count, heads = k.shape[0], torch.arange(k.shape[1], device=k.device)
    targets, keys = step.targets[:count].long(), k.to(key_cache.dtype)
    key_cache[targets, heads] = keys
    value_cache[targets, heads] = v.to(value_cache.dtype)
    if options.bound_scores:
        step.queries[:count] = q
        step.keys[:count] = keys


def score_pages(
    step: StepBuffers, batch: DecodeBatch, buffers: EvictionBuffers, options: StepOptions
) -> None:
    """Scores the pages of RaaS rows by their bounds: Quest's upper bound of q·k over the page.

    Called once after the last layer, with `StepOptions.bound_scores`. Extends the bounds of the
    page being filled by the step's key and, at the steps that stamp, scores the others. A page's
    score is the maximum over the KV head's queries, without the softmax scale, which does not
    change the order.

    Args:
        step: Queries and keys of all layers; ``page_scores`` are written, but of pages that hold no
            tokens and of the one being filled.
        batch: Rows of the step, as given to `claim_slots`.
        buffers: Eviction state of all layers; bounds are updated.
        options: Server-wide choices.
    """
    raas = _rows(batch, batch.requests.policies == Policy.RAAS)
    rows = _rows_to_stamp(batch, options)
    for layer in range(buffers.stamps.shape[0]):
        of_layer, state = step.layer(layer), buffers.layer(layer)
        _extend_bounds(raas, of_layer.keys[raas.row], state, options)
        scores = bound_scores(of_layer.queries[rows.row], rows.slots, state)
        kept = of_layer.page_scores[rows.row]
        scored = _candidates(rows, state, options)
        of_layer.page_scores[rows.row] = torch.where(scored, scores, kept)


def stamp_decode(
    step: StepBuffers, batch: DecodeBatch, buffers: EvictionBuffers, options: StepOptions
) -> None:
    """Stamps the pages of RaaS rows by their scores; without bound scores gathers mass too.

    Called once after the last layer. The best `RequestTables.stamp_pages` pages get the newest
    timestamp, ties to the lower page, or with `StepOptions.alpha` those that score above it. With
    `StepOptions.decay` a score p is worth ``decay * ln p`` steps: every page gets the timestamp
    that many steps ago, unless it has a newer one, so the oldest timestamp marks the page whose
    largest probability, decayed by its age, is the smallest. The page being filled has the newest
    already and takes no other's place.

    With `StepOptions.fade` (the lrfu rule) no page is stamped: the mass of each page of a RaaS row
    fades by that factor and gains the page's score, with bound scores the share of `page_shares`,
    but for the page being filled, whose mass stays at zero. H2O rows gain ``page_mass`` at every
    step under any rule.

    Args:
        step: Scores of all layers and, without bound scores, masses.
        batch: Rows of the step, as given to `claim_slots`.
        buffers: Eviction state of all layers; stamps and mass are updated.
        options: Server-wide choices.
    """
    raas = _rows_to_stamp(batch, options)
    h2o = _rows(batch, batch.requests.policies == Policy.H2O)
    for layer in range(buffers.stamps.shape[0]):
        of_layer, state = step.layer(layer), buffers.layer(layer)
        if not options.bound_scores:
            state.mass[h2o.slots] += of_layer.page_mass[h2o.row]
        candidate = _candidates(raas, state, options)
        scores = of_layer.page_scores[raas.row]
        if options.fade is not None:
            if options.bound_scores:
                scores = page_shares(scores, candidate, options.scaling)
            _gather_fading(raas, candidate, scores, options.fade, state)
        elif options.decay is not None:
            _stamp_decayed(raas, candidate & (scores > 0), scores, options.decay, state)
        elif options.alpha is not None:
            _stamp(raas, candidate & (scores > options.alpha), state)
        else:
            _stamp(raas, top_pages(scores, candidate, raas.stamp_pages), state)


def bound_scores(q: torch.Tensor, slots: torch.Tensor, buffers: EvictionBuffers) -> torch.Tensor:
    """Returns Quest's upper bound of q·k over each page, the maximum over a KV head's queries.

    Args:
        q: [B, Hq, D] queries after RoPE.
        slots: [B] int64 request slots.
        buffers: Eviction state of the layer.

    Returns:
        [B, H, N] float32, without the softmax scale.
    """
    heads = buffers.current.shape[1]
    query = q.float().reshape(q.shape[0], heads, q.shape[1] // heads, 1, q.shape[2])
    low = buffers.key_min[slots].float()[:, :, None]
    high = buffers.key_max[slots].float()[:, :, None]
    return torch.maximum(query * low, query * high).sum(-1).amax(2)


def top_pages(scores: torch.Tensor, candidate: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Marks the candidates with the largest scores; ties go to the lower page.

    Args:
        scores: [B, H, N] float32.
        candidate: [B, H, N] bool.
        count: [B] int32. How many to mark; all where there are fewer.

    Returns:
        [B, H, N] bool.
    """
    ranked = torch.where(candidate, scores, float("-inf"))
    order = ranked.argsort(dim=2, descending=True, stable=True)
    return candidate & (order.argsort(dim=2) < count[:, None, None])


def page_shares(scores: torch.Tensor, candidate: torch.Tensor, scaling: float) -> torch.Tensor:
    """Returns what attention would give to each page if its bound were the logit of one token.

    Args:
        scores: [B, H, N] float32 bounds.
        candidate: [B, H, N] bool. Pages that share; the others get zero.
        scaling: Factor on q·k before the softmax.

    Returns:
        [B, H, N] float32, which add up to one over the candidates.
    """
    shares = torch.where(candidate, scores * scaling, float("-inf")).softmax(2)
    return torch.where(candidate, shares, 0.0)


class _Rows(NamedTuple):
    """Some rows of a batch; every column is [E], all but ``row`` of the row's request."""

    row: torch.Tensor
    slots: torch.Tensor
    step: torch.Tensor
    policies: torch.Tensor
    prompt_lens: torch.Tensor
    budgets: torch.Tensor
    stamp_pages: torch.Tensor

    def where(self, mask: torch.Tensor) -> "_Rows":
        return _Rows(*(column[mask] for column in self))


def _rows(batch: DecodeBatch, mask: torch.Tensor) -> _Rows:
    step = batch.positions.long() - batch.requests.prompt_lens
    index = torch.arange(step.shape[0], device=step.device)
    rows = _Rows(index, batch.req_pool_indices.long(), step, *batch.requests)
    return rows.where(mask)


def _rows_to_stamp(batch: DecodeBatch, options: StepOptions) -> _Rows:
    rows = _rows(batch, batch.requests.policies == Policy.RAAS)
    return rows.where((rows.step + 1) % options.stamp_interval == 0)


def _advance(
    rows: _Rows, buffers: EvictionBuffers, layer_id: int, options: StepOptions
) -> torch.Tensor:
    """Moves each head to the page of this step: [E, H]; a page that begins is born and stamped."""
    begins = rows.step % options.page_size == 0
    saturated = rows.step >= rows.budgets
    following = (rows.step // options.page_size)[:, None]
    pages = torch.where(saturated[:, None], buffers.current[rows.slots].long(), following)
    claiming = begins & saturated
    if bool(claiming.any()):
        pages[claiming] = _victims(rows.where(claiming), buffers, layer_id, options)
    current = torch.arange(buffers.stamps.shape[2], device=pages.device) == pages[:, :, None]
    born, slots = current[begins], rows.slots[begins]
    buffers.current[slots] = pages[begins].int()
    buffers.births[slots] = torch.where(born, _now(rows)[begins], buffers.births[slots])
    buffers.mass[slots] = torch.where(born, 0.0, buffers.mass[slots])
    _stamp(rows, current, buffers)
    return pages


def _victims(
    rows: _Rows, buffers: EvictionBuffers, layer_id: int, options: StepOptions
) -> torch.Tensor:
    """Returns the page that each head gives up: [E, H] int64.

    Outside the newest `StepOptions.floor` tokens RaaS takes the oldest timestamp, or with
    `StepOptions.fade` the least mass, ties to the older page; the window the oldest page; random a
    hash of step, layer, head and page; H2O the least mass outside the newest half of the budget.
    """
    births = buffers.births[rows.slots].long()
    policy = rows.policies[:, None, None]
    # Non-negative floats sort like their bits.
    mass = buffers.mass[rows.slots].view(torch.int32).long()
    importance = buffers.stamps[rows.slots].long() if options.fade is None else mass
    floors = (rows.budgets // 2).clamp(max=options.floor)
    recent = births >= (rows.step - floors)[:, None, None]
    key = (recent.long() << 62) | (importance << 31) | births
    key = torch.where(policy == Policy.WINDOW, births, key)
    mixed = _hash(rows.step, births, layer_id, options) << 31 | births
    key = torch.where(policy == Policy.RANDOM, mixed, key)
    recent = births > (rows.step - rows.budgets // 2)[:, None, None]
    heavy = (recent.long() << 62) | (mass << 31) | births
    key = torch.where(policy == Policy.H2O, heavy, key)
    present = _present(rows, buffers, options)[:, None]
    return torch.where(present, key, torch.iinfo(torch.int64).max).argmin(2)


def _extend_bounds(
    rows: _Rows, keys: torch.Tensor, buffers: EvictionBuffers, options: StepOptions
) -> None:
    """Widens the bounds of the pages being filled by ``keys`` [E, H, D]; new pages begin anew."""
    pages = buffers.current[rows.slots].long()
    at = (rows.slots[:, None], torch.arange(pages.shape[1], device=pages.device), pages)
    fresh = (rows.step % options.page_size == 0)[:, None, None]
    low, high = buffers.key_min[at], buffers.key_max[at]
    buffers.key_min[at] = torch.where(fresh, keys, torch.minimum(low, keys))
    buffers.key_max[at] = torch.where(fresh, keys, torch.maximum(high, keys))


def _stamp(rows: _Rows, chosen: torch.Tensor, buffers: EvictionBuffers) -> None:
    """Gives the step's timestamp to pages, ``chosen`` [E, H, N] bool."""
    stamps = buffers.stamps[rows.slots]
    buffers.stamps[rows.slots] = torch.where(chosen, _now(rows), stamps)


def _stamp_decayed(
    rows: _Rows, chosen: torch.Tensor, scores: torch.Tensor, decay: float, buffers: EvictionBuffers
) -> None:
    """Gives pages the timestamp of their score, if it is newer; ``chosen`` [E, H, N] bool."""
    age = torch.floor(decay * torch.where(chosen, scores, 1.0).log()).int()
    stamps = buffers.stamps[rows.slots]
    newer = torch.maximum(stamps, _now(rows) + age)
    buffers.stamps[rows.slots] = torch.where(chosen, newer, stamps)


def _gather_fading(
    rows: _Rows, chosen: torch.Tensor, scores: torch.Tensor, fade: float, buffers: EvictionBuffers
) -> None:
    """Lets the mass of pages fade and gain their score; ``chosen`` [E, H, N] bool."""
    mass = buffers.mass[rows.slots]
    buffers.mass[rows.slots] = torch.where(chosen, mass * fade + scores, mass)


def _now(rows: _Rows) -> torch.Tensor:
    return rows.step.int()[:, None, None]


def _present(rows: _Rows, buffers: EvictionBuffers, options: StepOptions) -> torch.Tensor:
    """Tells which pages hold tokens: [E, N] bool."""
    size = options.page_size
    count = torch.minimum(rows.step // size + 1, rows.budgets // size)
    pages = torch.arange(buffers.stamps.shape[-1], device=buffers.stamps.device)
    return pages < count[:, None]


def _candidates(rows: _Rows, buffers: EvictionBuffers, options: StepOptions) -> torch.Tensor:
    """Tells which pages' scores count, all but the one being filled: [E, H, N] bool."""
    pages = torch.arange(buffers.stamps.shape[2], device=buffers.stamps.device)
    others = pages != buffers.current[rows.slots][:, :, None]
    return _present(rows, buffers, options)[:, None] & others


def _hash(
    step: torch.Tensor, like: torch.Tensor, layer_id: int, options: StepOptions
) -> torch.Tensor:
    """Mixes step, layer, head and page to 32 bits: [E, H, N] int64, the same on every machine."""
    page = torch.arange(like.shape[2], device=like.device)
    head = torch.arange(like.shape[1], device=like.device)[:, None] + options.head_offset
    x = step[:, None, None] * 0x9E3779B1 + layer_id * 0x85EBCA77 + head * 0xC2B2AE3D + page
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = x & 0xFFFFFFFF
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 16)
