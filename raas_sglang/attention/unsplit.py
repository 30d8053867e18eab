"""FlashInfer plans for CUDA graphs that split no row over several blocks.

A plan for a graph always goes through FlashInfer's split of rows, since later plans may need it:
partial outputs in float32, a merge after each layer, and spare blocks. From so many rows on that
the GPU is full without it, FlashInfer splits no row whatever the lengths, and all that is left of
it is its cost. Without split KV FlashInfer 0.6.15 launches the spare blocks all the same and has
no mask to end them, so they must not be launched.
"""

from typing import Any

import torch

_BLOCKS_PER_MULTIPROCESSOR = 2  # FlashInfer's number, of decode on tensor cores


def rows_without_split(kv_heads: int, device: torch.device | str) -> int:
    """Rows of a batch from which on FlashInfer splits none, on tensor cores.

    Args:
        kv_heads: KV heads on this rank; each row has a block for each.
        device: A GPU.
    """
    multiprocessors: int = torch.cuda.get_device_properties(device).multi_processor_count
    return _BLOCKS_PER_MULTIPROCESSOR * multiprocessors // kv_heads


def drop_spare_blocks(wrapper: Any, rows: int) -> None:
    """Lets the graph that is captured next launch a block for each row and KV head, and no more.

    Call it after the wrapper's plan, before the capture. Replays are as captured, whatever is
    planned for them, as long as that is without split KV too.

    Args:
        wrapper: A `BatchDecodeWithPagedKVCacheWrapper` on tensor cores in graph mode, planned with
            ``disable_split_kv``.
        rows: B, one query token each, so that each row is one tile.
    """
    # FlashInfer's `PrefillPlanInfo`, whose first number is the size of the grid in tiles.
    wrapper._plan_info = [rows, *wrapper._plan_info[1:]]
