"""Decode attention over resident slots, whose store happens in place."""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from raas_kernels import DecodeBatch
from raas_sglang.attention.side_stream import SideStream
from raas_sglang.pool import RaasTokenToKVPool, require_pool

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


class InPlaceDecode:
    """Mixin before one of SGLang's attention backends: decode stores through our pool.

    Kernel lengths need no work here: ``forward_batch.seq_lens`` of a decode batch are resident
    lengths already, on the host too. With no row saturated they equal the logical ones, and so do
    the results, bit for bit. A subclass says in ``rows`` where the slots of the batch are and calls
    `claim_slots` once before the first layer.
    """

    rows: DecodeBatch
    side: SideStream

    @property
    def pool(self) -> RaasTokenToKVPool:
        """SGLang's pool, which is ours."""
        return require_pool(self.token_to_kv_pool)  # type: ignore[attr-defined]

    def claim_slots(self) -> None:
        """Begins the decode step of ``rows``; nothing waits for it before the first store."""
        self.side.run(partial(self.pool.claim_slots, self.rows))

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
            **kwargs: Whatever else SGLang passes.

        Returns:
            [B, Hq * D].
        """
        if not save_kv_cache or k is None or v is None:
            raise RuntimeError(
                "RaaS must store the keys and values of a decode step itself, but the model "
                "stored them or shares them with another layer; remove --kv-policy for this model"
            )
        pool = self.pool
        self.side.join()
        pool.store_decode(layer, q, k, v, self.rows)
        out = self._attend(q, layer, forward_batch, **kwargs)
        if pool.is_last(layer):
            self.side.run(partial(pool.score_tokens, layer, self.rows))
        return out

    def _attend(
        self, q: torch.Tensor, layer: "RadixAttention", forward_batch: "ForwardBatch", **kwargs: Any
    ) -> torch.Tensor:
        """Attention over the resident slots."""
        out: torch.Tensor = super().forward_decode(  # type: ignore[misc]
            q, None, None, layer, forward_batch, save_kv_cache=False, **kwargs
        )
        return out
