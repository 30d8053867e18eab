"""A plugin that lets SGLang's LoRA run without a GPU: it pins memory, which takes a driver."""

import functools
from collections.abc import Callable

import torch

CREATORS = ("empty", "full", "ones", "tensor", "zeros")


def _unpinned(create: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(create)
    def made(*args: object, pin_memory: bool = False, **kwargs: object) -> torch.Tensor:
        return create(*args, **kwargs)

    return made


def register() -> None:
    """Entry point."""
    for name in CREATORS:
        setattr(torch, name, _unpinned(getattr(torch, name)))
    torch.Tensor.pin_memory = lambda self, *_: self
