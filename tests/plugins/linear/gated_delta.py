"""Gated delta net, of Qwen3-Next and Qwen3.5, in plain torch.

SGLang has it for a CPU in a package that is not installed with its wheel, without the states that
the radix tree keeps of a prefill.
"""

import sys
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F

from convolution import convolve, convolve_step, spans

_CHUNK = 64  # tokens between two states that a prefill returns


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
    for row, (start, end) in enumerate(spans(cu_seqlens)):
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


def install() -> None:
    """Puts these where SGLang's layers look for the kernels, before it imports them."""
    made: Any = ModuleType("sgl_kernel.mamba")
    made.causal_conv1d_fn_cpu, made.causal_conv1d_update_cpu = convolve, convolve_step
    made.chunk_gated_delta_rule_cpu = _prefill
    sys.modules["sgl_kernel.mamba"] = made
    ops = torch.ops.sgl_kernel
    ops.fused_gdn_gating_cpu, ops.fused_rmsnorm_gated_cpu = _gate, _norm
    ops.fused_sigmoid_gating_delta_rule_update_cpu = _decode
    ops.fused_sigmoid_mul_cpu, ops.fused_qk_gemma_rmsnorm_cpu = _attention_gate, None
    ops.fused_qk_gemma_rmsnorm_with_gate_cpu = _attention_norm
    ops.fused_qkvzba_split_reshape_cat_contiguous_cpu = _split
    from sglang.kernels.ops.attention.fla import fused_norm_gate, layernorm_gated

    fused_norm_gate._use_cpu = layernorm_gated._use_cpu = True
