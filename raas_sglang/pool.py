"""SGLang's KV pool with the eviction state and the in-place store."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.mem_cache.memory_pool import HybridLinearKVPool, MHATokenToKVPool

from raas_kernels import DecodeBatch, KeyCaches, KVScales
from raas_kernels.layout import UNSCALED, StepOptions
from raas_kernels.ops import implementation
from raas_sglang.config import RaasConfig
from raas_sglang.life.request import RequestState
from raas_sglang.life.restore import budget_layout, next_victims, restore_state
from raas_sglang.state import EvictionState, StateShape

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.memory_pool import ReqToTokenPool

    from raas_sglang.trace.sampler import TokenSampler


class RaasTokenToKVPool(MHATokenToKVPool):
    """Keys and values [slot, kv_head, head_dim] per layer, where a slot is reused in place.

    Prefill stores as in `MHATokenToKVPool`. A decode step calls `claim_slots` before its first
    layer, `store_decode` in each and `score_tokens` after the last. `attach` must be called once
    before the first forward pass.

    Attributes:
        state: The eviction state of all layers.
        req_to_token_pool: SGLang's table of slots.
        token_sampler: Samples the state and is told of ends, where a trace was asked for.
    """

    state: EvictionState
    req_to_token_pool: "ReqToTokenPool"
    forward_stream: torch.cuda.Stream | torch.cpu.Stream
    token_sampler: "TokenSampler | None" = None

    def attach(
        self,
        config: RaasConfig,
        req_to_token_pool: "ReqToTokenPool",
        shape: StateShape,
        head_offset: int,
        forward_stream: torch.cuda.Stream | torch.cpu.Stream,
        scales: Sequence[KVScales] = (),
    ) -> None:
        """Allocates the eviction state for the request rows of ``req_to_token_pool``.

        Args:
            config: The server's settings.
            req_to_token_pool: SGLang's table of slots.
            shape: What the model adds to the size of the state.
            head_offset: Index of this rank's first KV head.
            forward_stream: Of the device, on which SGLang runs forward passes.
            scales: Of each layer of a quantised cache; none if no layer has any.
        """
        self.req_to_token_pool, self.forward_stream = req_to_token_pool, forward_stream
        self.ops = implementation(self.device)
        self.options = StepOptions(head_offset, layer_offset=self.start_layer)
        num_rows = req_to_token_pool.req_to_token.shape[0]
        self.state = EvictionState(config, shape, num_rows, self.device)
        # SGLang's buffers of a quantised cache are bytes.
        self.key_caches = KeyCaches.of([keys.view(self.dtype) for keys in self.k_buffer], scales)
        self.value_caches = [values.view(self.dtype) for values in self.v_buffer]
        self.scales = list(scales) or [UNSCALED] * self.layer_num
        self._indices = {layer_id: index for index, layer_id in enumerate(self.model_layer_ids)}

    def is_last(self, layer: "RadixAttention") -> bool:
        """Whether a layer is the last that has keys and values, after which a step ends."""
        return bool(self._indices[layer.layer_id] == self.layer_num - 1)

    def claim_slots(self, rows: DecodeBatch) -> None:
        """Begins a decode step: finds the slots that it stores to, for all layers.

        Where SGLang says, or in place of an old token where a row is saturated.
        """
        self.ops.claim_slots(self.state.step, rows, self.state.buffers, self.options)

    def store_decode(
        self,
        layer: "RadixAttention",
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        rows: DecodeBatch,
    ) -> None:
        """Stores one decode step of a layer in the slots that `claim_slots` found.

        Args:
            layer: The attention layer.
            q: [B, Hq * D] or [B, Hq, D] queries after RoPE.
            k: [B, H * D] or [B, H, D] keys after RoPE.
            v: [B, H * D] or [B, H, D] values.
            rows: The decode batch.
        """
        index = self._indices[layer.layer_id]
        self.ops.store_decode(
            q.view(-1, layer.tp_q_head_num, self.head_dim),
            k.view(-1, self.head_num, self.head_dim),
            v.view(-1, self.head_num, self.v_head_dim),
            self.key_caches.layers[index],
            self.value_caches[index],
            self.state.step.layer(index),
            rows,
            self.state.buffers.layer(index),
            self.scales[index],
        )

    def score_tokens(self, layer: "RadixAttention", rows: DecodeBatch) -> None:
        """Ends a decode step: chooses what the next ones overwrite, in all layers.

        Nothing before the next step reads that, so one launch does for all layers.

        Args:
            layer: The last attention layer; all scale q·k as it does.
            rows: The decode batch.
        """
        state = self.state
        self.ops.score_tokens(
            state.scratch,
            self.key_caches,
            state.step,
            rows,
            state.buffers,
            self.options._replace(scaling=layer.scaling),
        )

    def resume(self, slot: int, request: RequestState) -> None:
        """Lets a request go on whose last L generated tokens were prefilled again.

        Moves each to its place in the budget slots [P, P + L) and rebuilds the eviction state.

        Args:
            slot: The request's row.
            request: Its progress; at least one generated token was prefilled.
        """
        options, generated = request.options, request.generated_len
        # The prefill may still run: of backends that note at its start which slots they will use
        # (trtllm_mha), SGLang lets the scheduler's stream wait for no more than that.
        torch.get_device_module(self.device).current_stream().wait_stream(self.forward_stream)
        tokens = budget_layout(generated, options.budget)
        row = self.req_to_token_pool.req_to_token[slot].long()
        source = row[request.prompt_len + tokens.to(row.device) - request.skipped_len]
        target = row[request.prompt_len : request.prompt_len + len(tokens)]
        norms = []
        for keys, values in zip(self.k_buffer, self.v_buffer, strict=True):
            keys[target] = keys[source]
            values[target] = values[source]
            norms.append(values[target].view(self.dtype).float().norm(dim=2).T)
        victims = next_victims(options.policy, generated, options.budget)
        restore_state(self.state.buffers, slot, options.policy, tokens, torch.stack(norms), victims)


def pool_of(allocator: Any) -> RaasTokenToKVPool:
    """Returns the pool behind SGLang's allocator, as of `require_pool`."""
    return require_pool(allocator.get_kvcache())


def unwrapped(pool: Any) -> Any:
    """Returns what holds keys and values: a pool, or its part beside that of linear attention."""
    return pool.full_kv_pool if type(pool) is HybridLinearKVPool else pool


def require_pool(pool: Any) -> RaasTokenToKVPool:
    """Returns a pool of SGLang's that is ours, or the part of it that is.

    Raises:
        RuntimeError: SGLang built another pool, so that evicting would corrupt memory.
    """
    pool = unwrapped(pool)
    if not isinstance(pool, RaasTokenToKVPool):
        raise RuntimeError(
            f"--kv-policy must run on {RaasTokenToKVPool.__name__}, got {type(pool).__name__}; "
            "the model's KV cache is not of a kind that RaaS supports: remove --kv-policy for "
            "this model"
        )
    return pool
