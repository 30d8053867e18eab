"""Rebuilds the eviction state of a request whose tokens were prefilled, not decoded.

An interrupted request comes back with prompt and output prefilled. Its last L generated tokens are
laid out as the window policy would have left them: token i at place i mod L of the budget.
"""

from typing import NamedTuple

import torch

from raas_kernels import EvictionBuffers


class BudgetLayout(NamedTuple):
    """Which generated token each place of the budget holds.

    Attributes:
        tokens: [K] int64, cpu. Token of each place, K = min(generated, L).
        births: [N] int64, cpu. First token of each page's present life.
        lasts: [N] int64, cpu. Last token of each page's present life.
        current: The page that holds the newest token.
    """

    tokens: torch.Tensor
    births: torch.Tensor
    lasts: torch.Tensor
    current: int


def budget_layout(generated: int, budget: int, page_size: int) -> BudgetLayout:
    """Lays the last ``budget`` of ``generated`` tokens out in a budget of pages.

    Args:
        generated: Generated tokens so far, at least 1.
        budget: L, a multiple of ``page_size``.
        page_size: Tokens of an eviction page.
    """
    kept = min(generated, budget)
    first = generated - kept
    places = torch.arange(kept)
    tokens = first + (places - first) % budget
    pages = places // page_size
    lasts = torch.zeros(-(-kept // page_size), dtype=torch.int64)
    lasts = lasts.scatter_reduce(0, pages, tokens, reduce="amax", include_self=False)
    births = lasts // page_size * page_size
    return BudgetLayout(tokens, births, lasts, (generated - 1) % budget // page_size)


def restore_layer(
    buffers: EvictionBuffers, slot: int, layout: BudgetLayout, keys: torch.Tensor, page_size: int
) -> None:
    """Writes the state of one request in one layer: pages stamped by their last tokens, no mass.

    Args:
        buffers: Eviction state of the layer.
        slot: The request's slot.
        layout: From `budget_layout`.
        keys: [K, H, D] keys in the order of the budget's places.
        page_size: Tokens of an eviction page.
    """
    pages, device = len(layout.births), keys.device
    births = layout.births.to(device)
    buffers.births[slot, :, :pages] = births.int()
    buffers.stamps[slot, :, :pages] = layout.lasts.to(device).int()
    buffers.mass[slot] = 0.0
    buffers.current[slot] = layout.current
    if buffers.key_min.shape[2] == 0:
        return
    place_page = torch.arange(keys.shape[0], device=device) // page_size
    own = (layout.tokens.to(device) >= births[place_page])[:, None, None]
    index = place_page[:, None, None].expand_as(keys)
    # float32 holds bf16 and fp16 exactly, and has a scatter reduction on every device.
    shape = (pages, *keys.shape[1:])
    for target, fill, kind in (
        (buffers.key_min, float("inf"), "amin"),
        (buffers.key_max, float("-inf"), "amax"),
    ):
        bound = torch.full(shape, fill, device=device)
        bound.scatter_reduce_(0, index, torch.where(own, keys.float(), fill), reduce=kind)
        target[slot, :, :pages] = bound.transpose(0, 1).to(target.dtype)
