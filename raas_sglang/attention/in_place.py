"""Decode attention over resident slots, whose store happens in place."""

from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from raas_kernels import DecodeBatch
from raas_sglang.attention.side_stream import SideStream
from raas_sglang.pool import RaasTokenToKVPool, require_pool

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.memory_pool import KVCache
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


class InPlaceDecode:
    """Mixin before one of SGLang's attention backends: decode stores and reads through our pool.

    SGLang's batch has logical lengths, from which positions follow. Attention reads the slots that
    a row holds, so a subclass hands on what `with_resident_lens` makes of the batch, says in
    ``rows`` where its slots are, and calls `claim_slots` once before the first layer. With no row
    saturated both lengths are the same, and so are the results, bit for bit.
    """

    rows: DecodeBatch
    side: SideStream
    token_to_kv_pool: "KVCache"

    @property
    def pool(self) -> RaasTokenToKVPool:
        """SGLang's pool, which is ours."""
        return require_pool(self.token_to_kv_pool)

    def resident_lens(self, forward_batch: "ForwardBatch") -> torch.Tensor:
        """Resident lengths of a decode batch, on the host, [B] of the dtype of its own there.

        A batch of no request, made up to warm up or to capture a graph, keeps its own lengths.
        """
        seq_lens: torch.Tensor = forward_batch.seq_lens_cpu
        # The view of a batch that a graph is replayed with has none, and its requests are real.
        if getattr(forward_batch, "rids", ()) is None:
            return seq_lens
        return self.pool.state.step_lens(seq_lens)

    def with_resident_lens(
        self, forward_batch: "ForwardBatch", resident_lens: torch.Tensor
    ) -> "ForwardBatch":
        """The batch as decode attention is to see it, without synchronisation with the device.

        Args:
            forward_batch: The decode batch, left as it is.
            resident_lens: What `resident_lens` says of it.
        """
        seen: ForwardBatch = copy(forward_batch)
        seen.seq_lens_cpu = resident_lens
        seen.seq_lens_sum = int(resident_lens.sum())
        seen.seq_lens = self.pool.state.resident_lens(
            forward_batch.req_pool_indices, forward_batch.seq_lens
        )
        return seen

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
