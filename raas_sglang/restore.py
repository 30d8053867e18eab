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


def restore_state(buffers: EvictionBuffers, slot: int, layout: BudgetLayout) -> None:
    """Writes the state of one request in all layers: pages stamped by their last tokens, no mass.

    Args:
        buffers: Eviction state of all layers.
        slot: The request's slot.
        layout: From `budget_layout`.
    """
    pages, device = len(layout.births), buffers.births.device
    buffers.births[:, slot, :, :pages] = layout.births.to(device).int()
    buffers.stamps[:, slot, :, :pages] = layout.lasts.to(device).int()
    buffers.mass[:, slot] = 0.0
    buffers.current[:, slot] = layout.current
