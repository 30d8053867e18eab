"""Decode attention over resident lengths, for the CPU engine."""

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

from raas_sglang.pool import RaasTokenToKVPool

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner


class RaasTorchNativeAttnBackend(TorchNativeAttnBackend):
    """SGLang's torch attention whose decode stores in place and reads resident slots only.

    Prefill is SGLang's. In decode the kernel lengths are resident lengths; with no row saturated
    they equal the logical ones and so do the results, bit for bit.
    """

    def __init__(self, model_runner: "ModelRunner") -> None:
        super().__init__(model_runner)
        if not isinstance(self.token_to_kv_pool, RaasTokenToKVPool):
            raise RuntimeError(
                f"--kv-policy must run on {RaasTokenToKVPool.__name__}, got "
                f"{type(self.token_to_kv_pool).__name__}; remove --kv-policy for this model"
            )
        self.pool: RaasTokenToKVPool = self.token_to_kv_pool

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: "RadixAttention",
        forward_batch: "ForwardBatch",
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Runs one decode step of a layer.

        Args:
            q: [B, Hq * D] queries after RoPE.
            k: [B, H, D] or [B, H * D] keys after RoPE.
            v: [B, H, D] or [B, H * D] values.
            layer: The attention layer.
            forward_batch: The decode batch.
            save_kv_cache: Must be True: the store is where eviction happens.
            **kwargs: Whatever else SGLang passes; unused.

        Returns:
            [B, Hq * D].
        """
        if not save_kv_cache or k is None or v is None:
            raise RuntimeError(
                "RaaS must store the keys and values of a decode step itself, but the model "
                "stored them or shares them with another layer; remove --kv-policy for this model"
            )
        q = q.reshape(-1, layer.tp_q_head_num * layer.qk_head_dim)
        self.pool.store_decode(layer, q, k, v, forward_batch)
        out = torch.empty_like(q)
        self._run_sdpa_forward_decode(
            q.view(-1, layer.tp_q_head_num, layer.qk_head_dim),
            out.view(-1, layer.tp_q_head_num, layer.v_head_dim),
            self.pool.get_key_buffer(layer.layer_id),
            self.pool.get_value_buffer(layer.layer_id),
            self.req_to_token_pool.req_to_token,
            forward_batch.req_pool_indices,
            self.pool.resident_lens(forward_batch),
            scaling=layer.scaling,
            enable_gqa=layer.tp_q_head_num != layer.tp_k_head_num,
            causal=False,
        )
        self.pool.score_exactly(layer, q, forward_batch)
        return out
