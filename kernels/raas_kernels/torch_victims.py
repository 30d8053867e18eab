"""What rows give up, in plain torch: the rules of `choose_victims`, where there is no Triton."""

import math
from typing import NamedTuple

import torch

from raas_kernels.buffers import EvictionBuffers
from raas_kernels.layout import (
    AGEING,
    BONUS,
    LARGEST_SPREAD,
    LEAST_SPREAD,
    PAPER_PAGE,
    StepOptions,
)


class Row(NamedTuple):
    """One row of a batch and the tables of its request, as plain numbers."""

    row: int
    slot: int
    step: int
    policy: int
    prompt_len: int
    budget: int
    period: int
    first_step: int
    capacity: int


class Heads(NamedTuple):
    """Views of the state of one row, all its heads: [H, held], and [H, LONG_PERIOD] victims."""

    births: torch.Tensor
    weights: torch.Tensor
    value_norms: torch.Tensor
    victims: torch.Tensor

    @classmethod
    def of(cls, row: Row, state: EvictionBuffers, held: int) -> "Heads":
        """Views of what a row has in the buffers of one layer."""
        return cls(
            births=state.births[row.slot, :, :held],
            weights=state.weights[row.slot, :, :held],
            value_norms=state.value_norms[row.slot, :, :held],
            victims=state.victims[row.slot],
        )

    def newest(self, row: Row, count: int) -> torch.Tensor:
        """The newest tokens: [H, held] bool."""
        return self.births >= row.step + 1 - count


def raas_victims(
    row: Row, key: torch.Tensor, heads: Heads, state: EvictionBuffers, options: StepOptions
) -> None:
    """Gives up the least important tokens; ``key`` is [H, held, D]."""
    mean = state.query_means[row.slot].view(len(key), -1, key.shape[2])
    variance = state.query_variances[row.slot].view(len(key), -1, key.shape[2])
    logits = mean @ key.transpose(1, 2) * options.scaling
    variance = variance * (0.5 * options.scaling**2)
    common = (variance @ state.key_variances[row.slot][:, :, None]).clamp(min=1e-30)
    spread = (BONUS / common).clamp(LEAST_SPREAD, LARGEST_SPREAD)
    apart = key - state.key_means[row.slot][:, None]
    logits = logits + spread * variance @ apart.square().transpose(1, 2)
    age = (row.step + 1 - heads.births).float() / row.budget
    importance = logits.log_softmax(2).logsumexp(1) - AGEING * age
    importance = importance + heads.value_norms.clamp(min=1e-30).log()
    heads.weights.copy_(importance)
    importance = _ordered(importance).masked_fill(heads.newest(row, row.budget // 4), math.inf)
    least = importance.sort(stable=True, dim=1).indices
    heads.victims[:, : row.period] = least[:, : row.period].int()


def paper_victim(row: Row, logits: torch.Tensor, heads: Heads) -> None:
    """Stamps the best half of the pages; once a page is full, gives up the oldest's."""
    pages = heads.births.shape[1] // PAPER_PAGE
    if pages == 0:
        return
    held = pages * PAPER_PAGE
    scores = _ordered(logits).amax(1)[:, :held].reshape(-1, pages, PAPER_PAGE).amax(2)
    births = heads.births[:, :held:PAPER_PAGE].long()
    candidate = births < row.step // PAPER_PAGE * PAPER_PAGE
    ranks = (
        scores.masked_fill(~candidate, -math.inf).sort(stable=True, dim=1, descending=True).indices
    )
    count = max(1, row.budget // PAPER_PAGE // 2)
    best = torch.zeros_like(candidate).scatter_(1, ranks[:, :count], True) & candidate
    chosen = best.repeat_interleave(PAPER_PAGE, 1)
    heads.weights[:, :held].masked_fill_(chosen, float(row.step))
    stamps = heads.weights[:, :held].reshape(-1, pages, PAPER_PAGE)
    if row.step + 1 >= row.budget and (row.step + 1) % PAPER_PAGE == 0:
        heads.victims[:, 0] = (stamps.amax(2).long() << 31 | births).argmin(1).int()


def h2o_victim(row: Row, logits: torch.Tensor, heads: Heads) -> None:
    """Adds what attention gave to each token; gives up the least of all."""
    heads.weights.add_(logits.softmax(2)[..., row.prompt_len :].mean(1))
    mass = _ordered(heads.weights).masked_fill(heads.newest(row, row.budget // 2), math.inf)
    heads.victims[:, 0] = mass.argmin(1).int()


def _ordered(values: torch.Tensor) -> torch.Tensor:
    """Values to be compared: a NaN is below all."""
    return values.nan_to_num(-math.inf, posinf=math.inf, neginf=-math.inf)
