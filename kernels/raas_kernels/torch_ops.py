"""The ops in plain torch: what a machine without Triton runs, and what the kernels are held to.

All rows and heads at once, no loop over tokens. Integers (victims, stamps, slots) are equal to the
kernels' bit for bit, and so are bounds of small integers. A mass that fades may differ in its last
bits, since a kernel fuses multiplication and addition, unless `StepOptions.fade` is a power of two,
and of bounds it takes another way through the softmax and lets several steps fade at once.
"""

from typing import NamedTuple

import torch

from raas_kernels.layout import (
    DecodeBatch,
    EvictionBuffers,
    KeyCaches,
    Policy,
    ScoreScratch,
    StepBuffers,
    StepOptions,
)
from raas_kernels.torch_scores import bound_scores, page_shares, top_pages


def claim_slots(
    step: StepBuffers, batch: DecodeBatch, buffers: EvictionBuffers, options: StepOptions
) -> None:
    """Finds the slots that one decode step writes to, in all layers: a victim's where budgets end.

    Called once before the first layer. Per layer, row and KV head: choose a victim where a new page
    begins, reset its state, stamp the page being filled, and leave in ``step.targets`` the slot
    that SGLang allocated or, for a saturated row, one of the page's own. With bound scores the
    places of the row's queries too. Mutates ``step`` and the buffers, all but the queries; the
    state of dense rows and of other requests stays as it is.

    Args:
        step: ``targets`` and ``query_places`` of the batch's rows are written.
        batch: Rows of the step.
        buffers: Eviction state of all layers.
        options: Server-wide choices.
    """
    rows = _rows(batch, batch.requests.policies != Policy.DENSE)
    if options.bound_scores:
        steps = (batch.positions - batch.requests.prompt_lens).clamp(min=0) % options.scored_steps
        query_places = batch.req_pool_indices * options.scored_steps + steps
        step.query_places[:, : len(query_places)] = query_places.int()
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
    buffers: EvictionBuffers,
    options: StepOptions,
) -> None:
    """Stores the token of one decode step where `claim_slots` said.

    Called for each layer before its attention. Writes k and v to the caches and, with
    `StepOptions.bound_scores`, q to ``buffers`` for `score_pages`: of every row, dense ones too,
    since a look at the policy would take longer than the copy.

    Args:
        q: [B, Hq, D] queries after RoPE; query heads of one KV head are neighbours.
        k: [B, H, D] keys after RoPE.
        v: [B, H, D] values.
        key_cache: [S, H, D] keys of the layer.
        value_cache: [S, H, D] values of the layer.
        step: Buffers of the layer; ``targets`` and ``query_places`` are read.
        buffers: Eviction state of the layer; ``queries`` are written.
        options: Server-wide choices.
    """
    count, heads = k.shape[0], torch.arange(k.shape[1], device=k.device)
    targets, keys = step.targets[:count].long(), k.to(key_cache.dtype)
    key_cache[targets, heads] = keys
    value_cache[targets, heads] = v.to(value_cache.dtype)
    if options.bound_scores:
        buffers.queries.flatten(0, 1)[step.query_places[:count].long()] = q


def score_pages(
    scratch: ScoreScratch,
    keys: KeyCaches,
    batch: DecodeBatch,
    buffers: EvictionBuffers,
    options: StepOptions,
) -> None:
    """Scores the pages of RaaS rows by their bounds, and stamps those that were important.

    Called once after the last layer, with `StepOptions.bound_scores`. Does nothing but for rows
    whose step is the last of `StepOptions.scored_steps`: for these the minimum and maximum of each
    channel over the keys of each page, and their bounds for the queries of all those steps (Quest's
    upper bound of q·k over the page). A page's score is the maximum over the KV head's queries,
    without the softmax scale, which does not change the order.

    Then each of these steps in turn, as far as the request has left queries: the best
    `RequestTables.stamp_pages` pages get the step's timestamp, ties to the lower page. With
    `StepOptions.fade` (the lrfu rule) no page is stamped, but the mass of each page fades by that
    factor and gains the share of `page_shares`. Only pages that were full before these steps take
    part; newer ones have newer timestamps, and no mass yet.

    Args:
        scratch: Working memory of the kernels; not used here.
        keys: Key caches of all layers, this step's already stored.
        batch: Rows of the step, as given to `claim_slots`.
        buffers: Eviction state of all layers; stamps or mass are updated.
        options: Server-wide choices.
    """
    rows, size = _rows_to_stamp(batch, options), options.page_size
    pages = buffers.stamps.shape[3]
    present = _present(rows, pages, options)
    places = (batch.kv_indptr.long()[rows.row] + rows.prompt_lens)[:, None]
    places = places + torch.arange(pages * size, device=places.device)
    slots = batch.kv_indices[torch.where(present.repeat_interleave(size, 1), places, 0)].long()
    for layer, cache in enumerate(keys.layers):
        of_pages = cache[slots].view(-1, pages, size, *cache.shape[1:]).transpose(1, 3).float()
        low, high, state = of_pages.amin(2), of_pages.amax(2), buffers.layer(layer)
        candidate = _candidates(rows, state, options)
        for place in range(options.scored_steps):
            now = rows._replace(step=rows.step + 1 - options.scored_steps + place)
            bounds = bound_scores(state.queries[rows.slots, place], low, high)
            _note_use(now, candidate, bounds, state, options)


def stamp_decode(
    step: StepBuffers, batch: DecodeBatch, buffers: EvictionBuffers, options: StepOptions
) -> None:
    """Stamps the pages of RaaS rows by attention itself; H2O rows gather it.

    Called once after the last layer, without `StepOptions.bound_scores`. As `score_pages` stamps,
    but one step at a time by ``page_scores``; with `StepOptions.alpha` the pages that score above
    it, and with `StepOptions.fade` the mass gains the score as it is. Of interrupted requests the
    steps before `RequestTables.first_steps` are unknown. H2O rows gain ``page_mass``.

    Args:
        step: Scores and masses of all layers.
        batch: Rows of the step, as given to `claim_slots`.
        buffers: Eviction state of all layers; stamps and mass are updated.
        options: Server-wide choices.
    """
    raas = _rows_to_stamp(batch, options)
    h2o = _rows(batch, batch.requests.policies == Policy.H2O)
    for layer in range(buffers.stamps.shape[0]):
        of_layer, state = step.layer(layer), buffers.layer(layer)
        state.mass[h2o.slots] += of_layer.page_mass[h2o.row]
        candidate = _candidates(raas, state, options)
        _note_use(raas, candidate, of_layer.page_scores[raas.row], state, options)


class _Rows(NamedTuple):
    """Some rows of a batch; every column is [E], all but ``row`` of the row's request."""

    row: torch.Tensor
    slots: torch.Tensor
    step: torch.Tensor
    policies: torch.Tensor
    prompt_lens: torch.Tensor
    budgets: torch.Tensor
    stamp_pages: torch.Tensor
    first_steps: torch.Tensor

    def where(self, mask: torch.Tensor) -> "_Rows":
        return _Rows(*(column[mask] for column in self))


def _rows(batch: DecodeBatch, mask: torch.Tensor) -> _Rows:
    step = batch.positions.long() - batch.requests.prompt_lens
    index = torch.arange(step.shape[0], device=step.device)
    rows = _Rows(index, batch.req_pool_indices.long(), step, *batch.requests)
    return rows.where(mask)


def _rows_to_stamp(batch: DecodeBatch, options: StepOptions) -> _Rows:
    rows = _rows(batch, batch.requests.policies == Policy.RAAS)
    return rows.where((rows.step + 1) % options.scored_steps == 0)


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
    present = _present(rows, key.shape[2], options)[:, None]
    return torch.where(present, key, torch.iinfo(torch.int64).max).argmin(2)


def _note_use(
    rows: _Rows,
    candidate: torch.Tensor,
    scores: torch.Tensor,
    state: EvictionBuffers,
    options: StepOptions,
) -> None:
    """Applies the rule to one step of rows, if known; ``candidate``, ``scores`` are [E, H, N]."""
    candidate = candidate & (rows.step >= rows.first_steps)[:, None, None]
    if options.fade is not None:
        if options.bound_scores:
            scores = page_shares(scores, candidate, options.scaling)
        _gather_fading(rows, candidate, scores, options.fade, state)
    elif options.alpha is not None:
        _stamp(rows, candidate & (scores > options.alpha), state)
    else:
        _stamp(rows, top_pages(scores, candidate, rows.stamp_pages), state)


def _stamp(rows: _Rows, chosen: torch.Tensor, buffers: EvictionBuffers) -> None:
    """Gives the step's timestamp to pages, ``chosen`` [E, H, N] bool."""
    stamps = buffers.stamps[rows.slots]
    buffers.stamps[rows.slots] = torch.where(chosen, _now(rows), stamps)


def _gather_fading(
    rows: _Rows, chosen: torch.Tensor, scores: torch.Tensor, fade: float, buffers: EvictionBuffers
) -> None:
    """Lets the mass of pages fade and gain their score; ``chosen`` [E, H, N] bool."""
    mass = buffers.mass[rows.slots]
    buffers.mass[rows.slots] = torch.where(chosen, mass * fade + scores, mass)


def _now(rows: _Rows) -> torch.Tensor:
    return rows.step.int()[:, None, None]


def _present(rows: _Rows, pages: int, options: StepOptions) -> torch.Tensor:
    """Tells which pages hold tokens: [E, N] bool."""
    size = options.page_size
    count = torch.minimum(rows.step // size + 1, rows.budgets // size)
    return torch.arange(pages, device=count.device) < count[:, None]


def _candidates(rows: _Rows, buffers: EvictionBuffers, options: StepOptions) -> torch.Tensor:
    """Tells which pages' scores count, those full before the scored steps: [E, H, N] bool."""
    size = options.page_size
    first = (rows.step + 1 - options.scored_steps) // size * size
    older = buffers.births[rows.slots] < first[:, None, None]
    return _present(rows, older.shape[2], options)[:, None] & older


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
