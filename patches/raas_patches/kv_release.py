"""`sglang.srt.mem_cache.common`: what a request gives back, and what the radix tree takes.

Why: SGLang expects the tree to take all that a request holds. A request that overwrote gives its
prompt to the tree and its budget slots back to the allocator. Remove when: SGLang lets a request
say which of its slots the tree may take.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.plugins.hook_registry import HookType
from sglang.srt.utils.common import ceil_align

from raas_patches.seam import Seam
from raas_sglang.pool import pool_of

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.base_prefix_cache import BasePrefixCache


def release_overallocated_kv_indices(
    original: Callable[..., None],
    req: "Req",
    start_p: int,
    end_p: int,
    tree_cache: "BasePrefixCache",
) -> None:
    """Around it: frees the budget slots that the tree did not take.

    SGLang's own asserts that there are none outside speculative decoding.
    """
    if not req.raas.has_overwritten:
        original(req, start_p, end_p, tree_cache)
        return
    allocator = tree_cache.token_to_kv_pool_allocator
    # The page in which the prompt ends went with the prompt's own tail.
    start = ceil_align(start_p, allocator.page_size)
    if start < end_p:
        row = tree_cache.req_to_token_pool.req_to_token[req.req_pool_idx]
        allocator.free_segment(row[start:end_p], start_pos=start)


def maybe_cache_unfinished_req(
    original: Callable[..., None], req: "Req", tree_cache: "BasePrefixCache", **kwargs: Any
) -> None:
    """Around it: of a request that is prefilled again, the tree takes the prompt alone.

    Its generated tokens are about to be overwritten in place, so they must stay its own.
    """
    # The tree may exchange slots of the prompt for its own.
    pool_of(tree_cache.token_to_kv_pool_allocator).state.slots_changed()
    end, prompt_len = req.extend_range.end, req.raas.prompt_len
    if not req.raas.options.evicts or end <= prompt_len:
        original(req, tree_cache, **kwargs)
        return
    start = req.extend_range.start
    req.set_extend_range(min(start, prompt_len), prompt_len)
    try:
        original(req, tree_cache, **kwargs)
    finally:
        req.set_extend_range(start, end)
    row = tree_cache.req_to_token_pool.req_to_token[req.req_pool_idx]
    own = row[prompt_len:end].to(req.prefix_indices.dtype)
    req.prefix_indices = torch.cat([req.prefix_indices[:prompt_len], own])


_PATH = "sglang.srt.mem_cache.common."
_UNTIL = "SGLang lets a request say which of its slots the tree may take"
SEAMS = (
    Seam(
        _PATH + "_release_overallocated_kv_indices",
        HookType.AROUND,
        release_overallocated_kv_indices,
        ("req", "start_p", "end_p", "tree_cache"),
        "frees the budget slots of a request that overwrote",
        _UNTIL,
    ),
    Seam(
        _PATH + "maybe_cache_unfinished_req",
        HookType.AROUND,
        maybe_cache_unfinished_req,
        ("req", "tree_cache", "kwargs"),
        "keeps generated tokens of an interrupted request its own",
        _UNTIL,
    ),
)
