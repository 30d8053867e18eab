"""Chooses the implementation of the ops: Triton where it can run, plain torch elsewhere."""

import os
from types import ModuleType

import torch

from raas_kernels import torch_ops


def implementation(device: torch.device | str) -> ModuleType:
    """Returns the module that holds the ops for a device.

    In the order of a decode step: `claim_slots`, `store_decode` for each layer, then `score_pages`
    with bound scores, or else `stamp_decode`.

    Triton needs a GPU, or ``TRITON_INTERPRET=1`` set before the process started.
    """
    if torch.device(device).type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        from raas_kernels import triton_ops

        return triton_ops
    return torch_ops
