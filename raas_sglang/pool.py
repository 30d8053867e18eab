"""SGLang's KV pool with the eviction state and the in-place store."""

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

from raas_kernels import DecodeBatch, KeyCaches
from raas_kernels.layout import StepOptions
from raas_kernels.ops import implementation
from raas_kernels.page_scores import exact_scores
from raas_sglang.config import RaasConfig
from raas_sglang.request import RequestState
from raas_sglang.restore import budget_layout, restore_state
from raas_sglang.state import EvictionState, StateShape

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.memory_pool import ReqToTokenPool


class RaasTokenToKVPool(MHATokenToKVPool):
    """Keys and values [slot, kv_head, head_dim] per layer, where a slot is reused in place.

    Prefill stores as in `MHATokenToKVPool`. A decode step calls `claim_slots` before its first
    layer, `store_decode` in each and `stamp_decode` after the last. `attach` must be called once
    before the first forward pass.
    """

    state: EvictionState
    req_to_token_pool: "ReqToTokenPool"

    def attach(
        self,
        config: RaasConfig,
        req_to_token_pool: "ReqToTokenPool",
        shape: StateShape,
        head_offset: int,
    ) -> None:
        """Allocates the eviction state for the request slots of ``req_to_token_pool``.

        Args:
            config: The server's settings.
            req_to_token_pool: SGLang's table of slots.
            shape: What the model adds to the size of the state.
            head_offset: Index of this rank's first KV head.
        """
        self.config = config
        self.req_to_token_pool = req_to_token_pool
        self.ops = implementation(self.device)
        self.options = StepOptions(
            config.page_size,
            head_offset,
            config.kv_score == "bound",
            config.alpha,
            config.scored_steps,
            layer_offset=self.start_layer,
            fade=config.fade,
            floor=config.recency_floor,
        )
        num_slots = req_to_token_pool.req_to_token.shape[0]
        self.state = EvictionState(config, shape, num_slots, self.device)
        self.key_caches = KeyCaches.of(self.k_buffer)

    def is_last(self, layer: "RadixAttention") -> bool:
        """Whether a layer is this rank's last, after which a step ends."""
        return bool(self._index(layer) == self.layer_num - 1)

    def claim_slots(self, rows: DecodeBatch) -> None:
        """Begins a decode step: finds the slots that it stores to, for all layers.

        Where SGLang says, or in place of an old token where a row is saturated.
        """
        self.ops.claim_slots(self.state.step, rows, self.state.buffers, self.options)

    def store_decode(
        self, layer: "RadixAttention", q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> None:
        """Stores one decode step of a layer in the slots that `claim_slots` found.

        Args:
            layer: The attention layer.
            q: [B, Hq * D] or [B, Hq, D] queries after RoPE.
            k: [B, H * D] or [B, H, D] keys after RoPE.
            v: [B, H * D] or [B, H, D] values.
        """
        index = self._index(layer)
        self.ops.store_decode(
            q.view(-1, layer.tp_q_head_num, self.head_dim),
            k.view(-1, self.head_num, self.head_dim).to(self.dtype),
            v.view(-1, self.head_num, self.v_head_dim).to(self.dtype),
            self.k_buffer[index],
            self.v_buffer[index],
            self.state.step.layer(index),
            self.state.buffers.layer(index),
            self.options,
        )

    def score_exactly(self, layer: "RadixAttention", q: torch.Tensor, rows: DecodeBatch) -> None:
        """Scores pages by attention probability in plain torch, where `--kv-score exact` asks.

        Args:
            layer: The attention layer.
            q: [B, Hq * D] or [B, Hq, D] queries after RoPE.
            rows: The decode batch, stored already.
        """
        if self.options.bound_scores:
            return
        index = self._index(layer)
        exact_scores(
            q.view(-1, layer.tp_q_head_num, self.head_dim),
            self.k_buffer[index],
            layer.scaling,
            self.state.step.layer(index),
            rows,
            self.state.buffers.layer(index),
            self.options,
        )

    def score_logits(self, layer: "RadixAttention", rows: DecodeBatch) -> None:
        """Scores pages by the logits that attention left in ``state.logits``.

        Args:
            layer: The attention layer.
            rows: The decode batch.
        """
        from raas_kernels.exact_scores import score_logits  # Triton, which the CPU may lack

        assert self.state.logits is not None, "allocated with --kv-score exact"
        index = self._index(layer)
        score_logits(
            self.state.logits,
            layer.scaling,
            rows,
            self.state.buffers.layer(index),
            self.state.step.layer(index),
            self.options,
        )

    def stamp_decode(self, layer: "RadixAttention", rows: DecodeBatch) -> None:
        """Ends a decode step: stamps the pages of all layers that were important.

        Nothing before the next step reads the timestamps, so one launch does for all layers.

        Args:
            layer: The last attention layer; all scale q·k as it does.
            rows: The decode batch.
        """
        state, options = self.state, self.options._replace(scaling=layer.scaling)
        if options.bound_scores:
            self.ops.score_pages(state.scratch, self.key_caches, rows, state.buffers, options)
        else:
            self.ops.stamp_decode(state.step, rows, state.buffers, options)

    def resume(self, slot: int, request: RequestState) -> None:
        """Lets a request go on whose last L generated tokens were prefilled again.

        Moves each to its place in the budget slots [P, P + L) and rebuilds the eviction state.

        Args:
            slot: The request's slot.
            request: Its progress; at least one generated token was prefilled.
        """
        page_size = self.config.page_size
        layout = budget_layout(request.generated_len, request.options.budget, page_size)
        row = self.req_to_token_pool.req_to_token[slot].long()
        source = row[request.prompt_len + layout.tokens.to(row.device) - request.skipped_len]
        target = row[request.prompt_len : request.prompt_len + len(layout.tokens)]
        for index in range(self.layer_num):
            self.k_buffer[index][target] = self.k_buffer[index][source]
            self.v_buffer[index][target] = self.v_buffer[index][source]
        restore_state(self.state.buffers, slot, layout)

    def _index(self, layer: "RadixAttention") -> int:
        index: int = layer.layer_id - self.start_layer
        return index


def pool_of(allocator: Any) -> RaasTokenToKVPool:
    """Returns the pool behind SGLang's allocator, as of `require_pool`."""
    return require_pool(allocator.get_kvcache())


def require_pool(pool: Any) -> RaasTokenToKVPool:
    """Returns a pool of SGLang's that is ours.

    Raises:
        RuntimeError: SGLang built another pool, so that evicting would corrupt memory.
    """
    if not isinstance(pool, RaasTokenToKVPool):
        raise RuntimeError(
            f"--kv-policy must run on {RaasTokenToKVPool.__name__}, got {type(pool).__name__}; "
            "the model's KV cache is not of a kind that RaaS supports: remove --kv-policy for "
            "this model"
        )
    return pool
