"""Exact page scores: what attention gave to each page of generated tokens in one decode step."""

import torch

from raas_kernels.layout import DecodeBatch, EvictionBuffers, RequestTables, StepOptions


def exact_scores(
    q: torch.Tensor,
    key_cache: torch.Tensor,
    scaling: float,
    batch: DecodeBatch,
    tables: RequestTables,
    buffers: EvictionBuffers,
    options: StepOptions,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes each page's share of the softmax over all resident tokens.

    In the page being filled only its own tokens count, not those that it has yet to overwrite.
    Plain torch with a loop over rows: for the CPU engine, where attention itself loops as well.

    Args:
        q: [B, Hq, D] queries after RoPE.
        key_cache: [S, H, D] keys of the layer, this step's already stored.
        scaling: Factor on q·k before the softmax.
        batch: Rows of the step.
        tables: What the requests were admitted with.
        buffers: Eviction state of the layer.
        options: Server-wide choices.

    Returns:
        Largest probability of a token of the page, the maximum over the KV head's queries, and
        the sum of its tokens' probabilities, the mean over them; both [B, H, N] float32, zero for
        dense rows and for pages that hold nothing.
    """
    rows, heads = q.shape[0], key_cache.shape[1]
    num_pages = buffers.stamps.shape[2]
    largest = torch.zeros(rows, heads, num_pages, device=q.device)
    total = torch.zeros_like(largest)
    query = q.float().reshape(rows, heads, -1, q.shape[2])
    for row, slot in enumerate(batch.req_pool_indices.tolist()):
        if int(tables.policies[slot]) == 0:
            continue
        prompt_len, budget = int(tables.prompt_lens[slot]), int(tables.budgets[slot])
        step = int(batch.seq_lens[row]) - 1 - prompt_len
        held = min(step + 1, budget)
        tokens = batch.req_to_token[slot, : prompt_len + held].long()
        keys = key_cache[tokens].float().transpose(0, 1)
        weights = (query[row] @ keys.transpose(1, 2) * scaling).softmax(-1)[..., prompt_len:]
        size = options.page_size
        padded = torch.nn.functional.pad(weights, (0, -held % size))
        padded = padded.reshape(*padded.shape[:2], -1, size)
        own = _own_tokens(buffers.current[slot], step, padded.shape[2], size)
        padded = padded * own[:, None]
        pages = padded.shape[2]
        largest[row, :, :pages] = padded.amax(3).amax(1)
        total[row, :, :pages] = padded.sum(3).mean(1)
    return largest, total


def _own_tokens(current: torch.Tensor, step: int, pages: int, size: int) -> torch.Tensor:
    """Marks the tokens that belong to their page's present life: [H, pages, size] bool."""
    filling = torch.arange(pages, device=current.device) == current[:, None]
    written = torch.arange(size, device=current.device) <= step % size
    return written | ~filling[:, :, None]
