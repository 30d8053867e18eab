"""Rebuilds the eviction state of a request whose tokens were prefilled, not decoded.

A retracted request comes back with prompt and output prefilled. Its last L generated tokens are
laid out as the window policy would have left them: token i at place i mod L of the budget.
"""

import torch

from raas_kernels import EvictionBuffers, Policy
from raas_kernels.layout import LONG_PERIOD, PAPER_PAGE


def budget_layout(generated: int, budget: int) -> torch.Tensor:
    """Lays the last ``budget`` of ``generated`` tokens out in the places of a budget.

    Args:
        generated: Generated tokens so far, at least 1.
        budget: L in tokens.

    Returns:
        [K] int64 on the CPU, K = min(generated, L): the generated token in each place.
    """
    kept = min(generated, budget)
    first = generated - kept
    return first + (torch.arange(kept) - first) % budget


def next_victims(policy: Policy, generated: int, budget: int) -> list[int]:
    """What the steps up to the next choice overwrite, as `EvictionBuffers.victims` has it.

    Args:
        policy: Of the request.
        generated: Generated tokens so far.
        budget: L in tokens.
    """
    if policy is Policy.RAAS_PAPER:
        return [generated % budget // PAPER_PAGE] * LONG_PERIOD
    period = max(1, policy.period(budget))
    first = generated // period * period
    return [(first + turn % period) % budget for turn in range(LONG_PERIOD)]


def restore_state(
    buffers: EvictionBuffers,
    row: int,
    policy: Policy,
    tokens: torch.Tensor,
    value_norms: torch.Tensor,
    victims: list[int],
) -> None:
    """Writes the state of one request in all layers; no token has gathered anything yet.

    Args:
        buffers: Eviction state of all layers.
        row: The request's row.
        policy: Of the request.
        tokens: From `budget_layout`.
        value_norms: [Y, H, K] float32, norms of the values in these places.
        victims: From `next_victims`.
    """
    kept, device = len(tokens), buffers.births.device
    births = tokens.to(device, torch.int32)
    buffers.births[:, row, :, :kept] = births
    # raas-paper dates a page by its newest token.
    stamps = births.float() if policy is Policy.RAAS_PAPER else 0.0
    buffers.weights[:, row, :, :kept] = stamps
    buffers.value_norms[:, row, :, :kept] = value_norms
    buffers.victims[:, row] = torch.tensor(victims, dtype=torch.int32).to(device)
