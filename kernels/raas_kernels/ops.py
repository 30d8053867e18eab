"""The contract between the product and the kernels, and who fulfils it on a device."""

import os
from typing import Protocol

import torch

from raas_kernels import torch_ops
from raas_kernels.buffers import EvictionBuffers, ScoreScratch, StepBuffers
from raas_kernels.layout import UNSCALED, DecodeBatch, KeyCaches, KVScales, StepOptions


class Ops(Protocol):
    """One decode step: `claim_slots`, `store_decode` for each layer, `score_tokens`.

    None of them synchronises with a GPU.
    """

    def claim_slots(
        self,
        step: StepBuffers,
        batch: DecodeBatch,
        buffers: EvictionBuffers,
        options: StepOptions,
    ) -> None:
        """Finds the slots that one decode step writes to, in all layers.

        Called once before the first layer. While a request grows, its token takes the slot that
        SGLang allocated. Once its budget is full, it takes the slot of the place that its policy
        gives up: window the oldest, random a hash of step, layer and head, all others what
        `score_tokens` chose.

        Args:
            step: ``targets`` and ``places`` of the batch's rows are written.
            batch: Rows of the step.
            buffers: Eviction state of all layers; ``births`` and ``weights`` of the claimed places
                are written. The state of dense rows and of other requests stays as it is.
            options: Server-wide choices.
        """
        ...

    def store_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        step: StepBuffers,
        batch: DecodeBatch,
        buffers: EvictionBuffers,
        scales: KVScales = UNSCALED,
    ) -> None:
        """Stores the token of one decode step where `claim_slots` said.

        Called for each layer before its attention.

        Args:
            q: [B, Hq, D] queries after RoPE; query heads of one KV head are neighbours.
            k: [B, H, D] keys after RoPE.
            v: [B, H, D] values.
            key_cache: [S, H, D] keys of the layer, of the type of ``k`` or float8_e4m3fn.
            value_cache: [S, H, D] values of the layer, likewise.
            step: Buffers of the layer. ``targets`` and ``places`` are read; ``queries`` of
                raas-paper and h2o rows are written.
            batch: Rows of the step, as given to `claim_slots`.
            buffers: Eviction state of the layer. The value's norm is noted, and the queries of raas
                rows move their moments on.
            scales: What keys and values are divided by, in their own type, before they are stored.
                The norm is that of the value as it is stored: only those of a head are compared.
        """
        ...

    def score_tokens(
        self,
        scratch: ScoreScratch,
        keys: KeyCaches,
        step: StepBuffers,
        batch: DecodeBatch,
        buffers: EvictionBuffers,
        options: StepOptions,
    ) -> None:
        """Scores the generated tokens of due rows and chooses what they give up next.

        Called once after the last layer. A row is due at the last step of its period; a raas row
        only from the last step on that still found a free place.

        raas expects of a token the share ``softmax(s m·k + c s²/2 Σ v (k - n)²)`` among the
        generated tokens, with the mean m and the variance v of a query head's recent queries, the
        mean n and the variance w of the recent keys, the softmax scale s and the spread c; with
        c = 1 it is what Gaussian queries give on average (the moment-generating function of q·k).
        The spread is what makes ``c s²/2 Σ v w`` equal `BONUS`, within its bounds. The sum of the
        shares of the KV head's queries, times the value's norm, fading by a factor of e with each L
        tokens of age, is its importance; the least important tokens outside the newest quarter of
        the budget are given up. raas-paper stamps the best half of the pages with the step, a page
        by the largest logit of its tokens, and gives up the page with the oldest timestamp. h2o
        adds up attention probability, the mean over the KV head's queries, and gives up the token
        with the least of it outside the newest half.

        Args:
            scratch: Working memory of the kernels.
            keys: Key caches of all layers, this step's already stored.
            step: Queries of all layers.
            batch: Rows of the step, as given to `claim_slots`.
            buffers: Eviction state of all layers; ``weights`` and ``victims`` are updated.
            options: Server-wide choices.
        """
        ...


def implementation(device: torch.device | str) -> Ops:
    """Returns the ops for a device: Triton where it can run, plain torch elsewhere.

    Triton needs a GPU, or ``TRITON_INTERPRET=1`` set before the process started.
    """
    if torch.device(device).type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        from raas_kernels import triton_ops

        return triton_ops
    return torch_ops
