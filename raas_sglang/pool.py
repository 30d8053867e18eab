"""SGLang's KV pool with the eviction state and the in-place store."""

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

from raas_kernels import DecodeBatch, Policy
from raas_kernels.layout import StepOptions
from raas_kernels.ops import implementation
from raas_kernels.page_scores import exact_scores
from raas_sglang.config import RaasConfig
from raas_sglang.request import RequestState
from raas_sglang.restore import budget_layout, restore_layer
from raas_sglang.state import EvictionState

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


class RaasTokenToKVPool(MHATokenToKVPool):
    """Keys and values [slot, kv_head, head_dim] per layer, where a slot is reused in place.

    Prefill stores as in `MHATokenToKVPool`. Decode goes through `store_decode`, which knows the
    query. `attach` must be called once before the first forward pass.
    """

    state: EvictionState
    req_to_token_pool: "ReqToTokenPool"

    def attach(
        self, config: RaasConfig, req_to_token_pool: "ReqToTokenPool", head_offset: int
    ) -> None:
        """Allocates the eviction state for the request slots of ``req_to_token_pool``.

        Args:
            config: The server's settings.
            req_to_token_pool: SGLang's table of slots.
            head_offset: Index of this rank's first KV head.
        """
        self.config = config
        self.req_to_token_pool = req_to_token_pool
        self.head_offset = head_offset
        self.ops = implementation(self.device)
        self.state = EvictionState(
            config,
            req_to_token_pool.req_to_token.shape[0],
            self.layer_num,
            self.head_num,
            self.head_dim,
            self.dtype,
            self.device,
        )

    def store_decode(
        self,
        layer: "RadixAttention",
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        forward_batch: "ForwardBatch",
    ) -> None:
        """Stores one decode step of a layer: dense rows where SGLang says, others in place.

        Args:
            layer: The attention layer.
            q: [B, Hq * D] or [B, Hq, D] queries after RoPE.
            k: [B, H * D] or [B, H, D] keys after RoPE.
            v: [B, H * D] or [B, H, D] values.
            forward_batch: The decode batch.
        """
        index = layer.layer_id - self.start_layer
        self.ops.store_decode(
            q.view(-1, layer.tp_q_head_num, self.head_dim),
            k.view(-1, self.head_num, self.head_dim).to(self.dtype),
            v.view(-1, self.head_num, self.v_head_dim).to(self.dtype),
            self.k_buffer[index],
            self.v_buffer[index],
            self._rows(forward_batch),
            self.state.tables,
            self.state.layer(index),
            self._options(layer),
        )

    def score_exactly(
        self, layer: "RadixAttention", q: torch.Tensor, forward_batch: "ForwardBatch"
    ) -> None:
        """Scores pages by attention probability and stamps them, where a row's policy needs it.

        Args:
            layer: The attention layer.
            q: [B, Hq * D] or [B, Hq, D] queries after RoPE.
            forward_batch: The decode batch, stored already.
        """
        index = layer.layer_id - self.start_layer
        rows, options = self._rows(forward_batch), self._options(layer)
        tables, buffers = self.state.tables, self.state.layer(index)
        policies = tables.policies[rows.req_pool_indices]
        wanted = policies == Policy.H2O
        if not options.bound_scores:
            wanted = wanted | (policies == Policy.RAAS)
        if not bool(wanted.any()):
            return
        queries = q.view(-1, layer.tp_q_head_num, self.head_dim)
        scores, mass = exact_scores(
            queries,
            self.k_buffer[index],
            layer.scaling,
            rows,
            tables,
            buffers,
            options,
        )
        self.ops.stamp_decode(scores, mass, rows, tables, buffers, options, self.config.alpha)

    def resident_lens(self, forward_batch: "ForwardBatch") -> torch.Tensor:
        """Slots that decode attention reads for each row: [B], dtype of ``seq_lens``."""
        return self.state.resident_lens(forward_batch.req_pool_indices, forward_batch.seq_lens)

    def resume(self, slot: int, request: RequestState) -> None:
        """Cuts a request whose output was prefilled again back to its budget.

        Moves its last L generated tokens into the budget slots [P, P + L) and rebuilds the eviction
        state. The caller frees the slots above.

        Args:
            slot: The request's slot.
            request: Its progress; at least one generated token was prefilled.
        """
        page_size = self.config.kv_eviction_page_size
        layout = budget_layout(request.generated_len, request.options.budget, page_size)
        row = self.req_to_token_pool.req_to_token[slot].long()
        source = row[request.prompt_len + layout.tokens.to(row.device)]
        target = row[request.prompt_len : request.prompt_len + len(layout.tokens)]
        for index in range(self.layer_num):
            keys = self.k_buffer[index][source]
            values = self.v_buffer[index][source]
            self.k_buffer[index][target] = keys
            self.v_buffer[index][target] = values
            restore_layer(self.state.layer(index), slot, layout, keys, page_size)

    def _rows(self, forward_batch: "ForwardBatch") -> DecodeBatch:
        return DecodeBatch(
            forward_batch.req_pool_indices,
            forward_batch.seq_lens,
            forward_batch.out_cache_loc,
            self.req_to_token_pool.req_to_token,
        )

    def _options(self, layer: "RadixAttention") -> StepOptions:
        return StepOptions(
            self.config.kv_eviction_page_size,
            layer.layer_id,
            self.head_offset,
            self.config.kv_score == "bound",
        )


def pool_of(allocator: Any) -> RaasTokenToKVPool:
    """Returns the pool behind SGLang's allocator.

    Raises:
        RuntimeError: SGLang built another pool, so that evicting would corrupt memory.
    """
    pool = allocator.get_kvcache()
    if not isinstance(pool, RaasTokenToKVPool):
        raise RuntimeError(
            f"--kv-policy must run on {RaasTokenToKVPool.__name__}, got {type(pool).__name__}; "
            "the model's KV cache is not of a kind that RaaS supports"
        )
    return pool
