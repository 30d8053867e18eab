"""The convolution before a layer's state, in plain torch; SGLang's own names and orders."""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F


def convolve(
    tokens: torch.Tensor,
    weights: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None,
    conv_states: torch.Tensor,
    has_initial_state: torch.Tensor,
    cache_indices: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens_cpu: Any = None,
) -> torch.Tensor:
    """Each channel over time, [channels, tokens]; the last tokens stay in the states."""
    out, past = torch.empty_like(tokens), weights.shape[1] - 1
    for row, (start, end) in enumerate(spans(query_start_loc)):
        state = conv_states[int(cache_indices[row])]
        whole = torch.cat([state * has_initial_state[row], tokens[:, start:end]], dim=1)
        convolved = F.conv1d(whole[None], weights[:, None], bias, groups=len(weights))[0]
        out[:, start:end] = F.silu(convolved) if activation == "silu" else convolved
        state.copy_(whole[:, -past:])
    return out


def convolve_step(
    tokens: torch.Tensor,
    conv_states: torch.Tensor,
    weights: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None,
    conv_state_indices: torch.Tensor,
) -> torch.Tensor:
    rows = torch.ones(len(tokens), dtype=torch.bool), conv_state_indices
    spans = torch.arange(len(tokens) + 1)
    return convolve(tokens.T, weights, bias, activation, conv_states, *rows, spans).T


def spans(starts: torch.Tensor) -> list[tuple[int, int]]:
    """Where each request begins and ends among the tokens."""
    return list(pairwise(starts.tolist()))
