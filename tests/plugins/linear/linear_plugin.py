"""Lets models with gated delta net run on a CPU: SGLang's kernels of it, in plain torch.

SGLang has them for a CPU in a package that is not installed with its wheel, without the states that
the radix tree keeps of a prefill. These keep them, so that the tree and the overlap scheduler work
as on a GPU.
"""

import os
import sys
from functools import partial
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F

_CHUNK = 64  # tokens between two states that a prefill returns


def _convolve(
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
    for row, (start, end) in enumerate(_spans(query_start_loc)):
        state = conv_states[int(cache_indices[row])]
        whole = torch.cat([state * has_initial_state[row], tokens[:, start:end]], dim=1)
        convolved = F.conv1d(whole[None], weights[:, None], bias, groups=len(weights))[0]
        out[:, start:end] = F.silu(convolved) if activation == "silu" else convolved
        state.copy_(whole[:, -past:])
    return out


def _convolve_step(
    tokens: torch.Tensor,
    conv_states: torch.Tensor,
    weights: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None,
    conv_state_indices: torch.Tensor,
) -> torch.Tensor:
    rows = torch.ones(len(tokens), dtype=torch.bool), conv_state_indices
    spans = torch.arange(len(tokens) + 1)
    return _convolve(tokens.T, weights, bias, activation, conv_states, *rows, spans).T


def _gate(
    decay: torch.Tensor, a: torch.Tensor, b: torch.Tensor, dt_bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return (-decay.exp() * F.softplus(a + dt_bias))[None], b.sigmoid()[None]


def _prefill(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor,
    cu_seqlens: torch.Tensor,
    initial_state_indices: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None, torch.Tensor]:
    """The delta rule, token by token; also returns the states before each chunk."""
    out, states = torch.empty_like(v), []
    q, k = (_normed(x).repeat_interleave(v.shape[2] // x.shape[2], 2) for x in (q, k))
    q = q * q.shape[-1] ** -0.5
    for row, (start, end) in enumerate(_spans(cu_seqlens)):
        state = initial_state[int(initial_state_indices[row])]
        for token in range(start, end):
            if (token - start) % _CHUNK == 0:
                states.append(state.clone())
            key, decay = k[0, token][:, None], g[0, token].exp()[:, None, None]
            known = (state * decay * key).sum(-1)
            new = (v[0, token] - known) * beta[0, token][:, None]
            state.copy_(state * decay + new[..., None] * key)
            out[0, token] = (state * q[0, token][:, None]).sum(-1)
    return out, None, torch.stack(states)[None]


def _decode(
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    initial_state_source: torch.Tensor,
    initial_state_indices: torch.Tensor,
    cu_seqlens: torch.Tensor,
    **_: Any,
) -> torch.Tensor:
    gates = _gate(A_log, a, b, dt_bias)
    return _prefill(q, k, v, *gates, initial_state_source, cu_seqlens, initial_state_indices)[0]


def _normed(x: torch.Tensor) -> torch.Tensor:
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()


def _norm(x: torch.Tensor, weight: torch.Tensor, gate: torch.Tensor, eps: float) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, eps) * F.silu(gate)


def _attention_norm(
    q_gate: torch.Tensor,
    k: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    eps: float,
    head_dim: int,
    heads: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of Qwen3.5: norms of queries and keys, and the gates that are beside the queries."""
    q, gate = q_gate.reshape(-1, heads, 2, head_dim).unbind(2)
    q = F.rms_norm(q, q.shape[-1:], 1 + q_weight, eps)
    k = F.rms_norm(k.reshape(-1, head_dim), q.shape[-1:], 1 + k_weight, eps)
    return q, k, gate.contiguous()


def _attention_gate(x: torch.Tensor, gate: torch.Tensor) -> None:
    x.mul_(gate.sigmoid())


def _split(
    qkvz: torch.Tensor, ba: torch.Tensor, k_heads: int, v_heads: int, k_dim: int, v_dim: int
) -> tuple[torch.Tensor, ...]:
    """Of Qwen3.5: what the convolution takes, the gates of the norm, and b and a."""
    qkv, z = qkvz.split([2 * k_heads * k_dim + v_heads * v_dim, v_heads * v_dim], dim=1)
    return qkv.contiguous(), z.reshape(-1, v_heads, v_dim), *ba.split([v_heads, v_heads], dim=1)


def _keep(
    conv_states: torch.Tensor,
    states: torch.Tensor,
    sources: torch.Tensor,
    mask: torch.Tensor,
    targets: torch.Tensor,
    *_: Any,
    **__: Any,
) -> None:
    for kept in (conv_states, states):
        kept[:, targets[mask]] = kept[:, sources.long()[mask]]


def _spans(starts: torch.Tensor) -> list[tuple[int, int]]:
    return list(pairwise(starts.tolist()))


def register() -> None:
    """Entry point; must run before SGLang imports a model with linear attention."""
    os.environ["SGLANG_MAMBA_CONV_DTYPE"] = "float32"  # what is compared has no rounding elsewhere
    made: Any = ModuleType("sgl_kernel.mamba")
    made.causal_conv1d_fn_cpu, made.causal_conv1d_update_cpu = _convolve, _convolve_step
    made.chunk_gated_delta_rule_cpu = _prefill
    sys.modules["sgl_kernel.mamba"] = made
    ops = torch.ops.sgl_kernel
    ops.fused_gdn_gating_cpu, ops.fused_rmsnorm_gated_cpu = _gate, _norm
    ops.fused_sigmoid_gating_delta_rule_update_cpu = _decode
    ops.fused_sigmoid_mul_cpu, ops.fused_qk_gemma_rmsnorm_cpu = _attention_gate, None
    ops.fused_qk_gemma_rmsnorm_with_gate_cpu = _attention_norm
    ops.fused_qkvzba_split_reshape_cat_contiguous_cpu = _split
    # SGLang asks for the device of the machine's torch, which may be that of a GPU.
    torch.Tensor.pin_memory = lambda self, *_: self  # type: ignore[method-assign]
    torch.get_device_module = partial(_device_module, torch.get_device_module)
    from sglang.kernels.ops.attention.fla import fused_norm_gate, layernorm_gated
    from sglang.srt.arg_groups import mamba_hook
    from sglang.srt.layers.attention import hybrid_linear_attn_backend

    fused_norm_gate._use_cpu = layernorm_gated._use_cpu = True
    mamba_hook._platform_supports_mamba_cache_extra_buffer = lambda: True
    hybrid_linear_attn_backend.track_mamba_states_all_layers = _keep


def _device_module(original: Any, device: Any = None) -> Any:
    return original(device or "cpu")
