"""Exact page scores on the CPU: what attention gave to each page of generated tokens in a step."""

import torch

from raas_kernels.layout import DecodeBatch, EvictionBuffers, Policy, StepBuffers, StepOptions


def exact_scores(
    q: torch.Tensor,
    key_cache: torch.Tensor,
    scaling: float,
    step: StepBuffers,
    batch: DecodeBatch,
    buffers: EvictionBuffers,
    options: StepOptions,
) -> None:
    """Computes each page's share of the softmax over all resident tokens, for RaaS and H2O rows.

    In the page being filled only its own tokens count, not those that it has yet to overwrite.
    Plain torch with a loop over rows: for the CPU engine, where attention itself loops as well.

    Args:
        q: [B, Hq, D] queries after RoPE.
        key_cache: [S, H, D] keys of the layer, this step's already stored.
        scaling: Factor on q·k before the softmax.
        step: Buffers of the layer. ``page_scores`` gets the largest probability of a token of the
            page, the maximum over the KV head's queries, and ``page_mass`` the sum of its tokens'
            probabilities, the mean over them; zero for other rows and pages that hold nothing.
        batch: Rows of the step.
        buffers: Eviction state of the layer.
        options: Server-wide choices.
    """
    rows, heads, size = q.shape[0], key_cache.shape[1], options.page_size
    step.page_scores[:rows] = 0.0
    step.page_mass[:rows] = 0.0
    query = q.float().reshape(rows, heads, -1, q.shape[2])
    policies, prompt_lens, budgets, *_ = (column.tolist() for column in batch.requests)
    for row, (slot, policy) in enumerate(
        zip(batch.req_pool_indices.tolist(), policies, strict=True)
    ):
        if policy not in (Policy.RAAS, Policy.H2O):
            continue
        prompt_len, start = prompt_lens[row], int(batch.kv_indptr[row])
        generated = int(batch.positions[row]) + 1 - prompt_len
        held = min(generated, budgets[row])
        tokens = batch.kv_indices[start : start + prompt_len + held].long()
        keys = key_cache[tokens].float().transpose(0, 1)
        weights = (query[row] @ keys.transpose(1, 2) * scaling).softmax(-1)[..., prompt_len:]
        weights = torch.nn.functional.pad(weights, (0, -held % size))
        weights = weights.reshape(*weights.shape[:2], -1, size)
        pages = weights.shape[2]
        own = _own_tokens(buffers.current[slot], generated - 1, pages, size)
        weights = weights * own[:, None]
        step.page_scores[row, :, :pages] = weights.amax(3).amax(1)
        step.page_mass[row, :, :pages] = weights.sum(3).mean(1)


def _own_tokens(current: torch.Tensor, step: int, pages: int, size: int) -> torch.Tensor:
    """Marks the tokens that belong to their page's present life: [H, pages, size] bool."""
    filling = torch.arange(pages, device=current.device) == current[:, None]
    written = torch.arange(size, device=current.device) <= step % size
    return written | ~filling[:, :, None]
