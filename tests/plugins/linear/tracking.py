"""Copies of states that the radix tree is given while a request decodes, in plain torch."""

from typing import Any

import torch


def _track(
    conv_states: torch.Tensor,
    states: torch.Tensor,
    sources: torch.Tensor,
    mask: torch.Tensor,
    targets: torch.Tensor,
    *_: Any,
    **__: Any,
) -> None:
    """Of one layer."""
    for kept in (conv_states, states):
        kept[targets[mask]] = kept[sources.long()[mask]]


def _track_all_layers(
    conv_states: torch.Tensor, states: torch.Tensor, *arguments: Any, **more: Any
) -> None:
    """Of all layers, which come first."""
    _track(conv_states.transpose(0, 1), states.transpose(0, 1), *arguments, **more)


def install() -> None:
    """Puts these where SGLang's backends look for the kernels."""
    from sglang.srt.layers.attention import hybrid_linear_attn_backend

    hybrid_linear_attn_backend.track_mamba_states_if_needed = _track
    hybrid_linear_attn_backend.track_mamba_states_all_layers = _track_all_layers
