"""Lets models with linear attention run on a CPU, with SGLang's kernels of it in plain torch.

They keep the states that the radix tree has of a prefill, so that the tree and the overlap
scheduler work as on a GPU.
"""

import os
from functools import partial
from typing import Any

import torch

import gated_delta
import mamba2
import tracking


def register() -> None:
    """Entry point; must run before SGLang imports a model with linear attention."""
    os.environ["SGLANG_MAMBA_CONV_DTYPE"] = "float32"  # what is compared has no rounding elsewhere
    # SGLang asks for the device of the machine's torch, which may be that of a GPU.
    torch.Tensor.pin_memory = lambda self, *_: self  # type: ignore[method-assign]
    torch.get_device_module = partial(_device_module, torch.get_device_module)
    gated_delta.install()
    mamba2.install()
    tracking.install()
    from sglang.srt.arg_groups import mamba_hook

    mamba_hook._platform_supports_mamba_cache_extra_buffer = lambda: True


def _device_module(original: Any, device: Any = None) -> Any:
    return original(device or "cpu")
