"""Mamba2, of Nemotron-H and others, in plain torch; SGLang has it in Triton alone."""

from typing import Any

import torch
import torch.nn.functional as F

from convolution import convolve, convolve_step, spans


def _prefill(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk_size: int,
    D: torch.Tensor,
    dt_bias: torch.Tensor,
    cu_seqlens: torch.Tensor,
    initial_states: torch.Tensor | None,
    track_end_locs: torch.Tensor | None,
    out: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The recurrence, token by token; heads are [tokens, heads, size] within a batch of one.

    Returns the states before each chunk of the whole batch, those after each request, and those
    before `track_end_locs`.
    """
    (x, dt, B, C, out), before, last = (each[0] for each in (x, dt, B, C, out)), [], []
    for row, (start, end) in enumerate(spans(cu_seqlens)):
        state = x.new_zeros(*x.shape[1:], B.shape[-1], dtype=torch.float32)
        if initial_states is not None:
            state.copy_(initial_states[row])
        for token in range(start, end):
            before.append(state.clone())
            inputs = tuple(each[token, None] for each in (x, dt, B, C))
            out[token] = _step(state[None], inputs, (A, D, dt_bias))[0]
        last.append(state)
    states = torch.stack(before)
    tracked = None if track_end_locs is None else states[track_end_locs.long()][None]
    return states[::chunk_size][None], torch.stack(last), tracked


def _decode(
    state: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    dt_bias: torch.Tensor,
    state_batch_indices: torch.Tensor,
    out: torch.Tensor,
    **_: Any,
) -> None:
    """One token a request; what is one number a head comes spread over its dimensions."""
    rows = state_batch_indices.long()
    states = state[rows]
    out.copy_(_step(states, (x, dt[..., 0], B, C), (A[:, 0, 0], D[:, 0], dt_bias[:, 0])))
    state[rows] = states


def _step(
    states: torch.Tensor, inputs: tuple[torch.Tensor, ...], weights: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    """Moves `states`, [requests, heads, size, state], on by a token, and reads them."""
    (x, dt, B, C), (A, D, dt_bias) = inputs, weights
    B, C = (each.repeat_interleave(x.shape[1] // each.shape[1], 1)[:, :, None] for each in (B, C))
    dt = F.softplus(dt + dt_bias)[..., None, None]
    states.mul_((dt * A[:, None, None]).exp()).add_(dt * x[..., None] * B)
    return (states * C).sum(-1) + D[:, None] * x


def install() -> None:
    """Puts these where SGLang's layers look for the kernels."""
    from sglang.srt.layers.attention.mamba import mamba

    layer: Any = mamba
    layer.causal_conv1d_fn = layer.causal_conv1d_fn_triton = convolve
    layer.causal_conv1d_update = layer.causal_conv1d_update_triton = convolve_step
    layer.mamba_chunk_scan_combined, layer.selective_state_update = _prefill, _decode
