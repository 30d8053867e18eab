"""What page scores are and what they say, in plain torch."""

import torch

# Machines differ in what they do with denormals, which still smaller shares would come to.
LEAST_SHARE = 2.0**-64


def bound_scores(q: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Returns Quest's upper bound of q·k over each page, the maximum over a KV head's queries.

    Args:
        q: [B, Hq, D] queries after RoPE.
        low: [B, H, N, D] float32 per-channel minimum of the keys of each page.
        high: [B, H, N, D] float32 per-channel maximum.

    Returns:
        [B, H, N] float32, without the softmax scale.
    """
    heads = low.shape[1]
    query = q.float().reshape(q.shape[0], heads, q.shape[1] // heads, 1, q.shape[2])
    return torch.maximum(query * low[:, :, None], query * high[:, :, None]).sum(-1).amax(2)


def top_pages(scores: torch.Tensor, candidate: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Marks the candidates with the largest scores; ties go to the lower page.

    Args:
        scores: [B, H, N] float32.
        candidate: [B, H, N] bool.
        count: [B] int32. How many to mark; all where there are fewer.

    Returns:
        [B, H, N] bool.
    """
    ranked = torch.where(candidate, scores, float("-inf"))
    order = ranked.argsort(dim=2, descending=True, stable=True)
    return candidate & (order.argsort(dim=2) < count[:, None, None])


def page_shares(scores: torch.Tensor, candidate: torch.Tensor, scaling: float) -> torch.Tensor:
    """Returns what attention would give to each page if its bound were the logit of one token.

    Args:
        scores: [B, H, N] float32 bounds.
        candidate: [B, H, N] bool. Pages that share; the others get zero.
        scaling: Factor on q·k before the softmax.

    Returns:
        [B, H, N] float32, which add up to one over the candidates; zero where it would be less than
        `LEAST_SHARE` of the largest.
    """
    logits = torch.where(candidate, scores * scaling, float("-inf"))
    shares = logits.softmax(2)
    least = shares.amax(2, keepdim=True) * LEAST_SHARE
    return torch.where(candidate & (shares > least), shares, 0.0)
