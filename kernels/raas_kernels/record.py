"""Tensors that belong together, each declared once: shape, type, who writes it, what it holds.

Everything else follows from the declaration: memory and its size, the check of what a kernel is
given, the names of its arguments, and the page of the documents.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Self, dataclass_transform

import torch

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Declaration:
    """What one tensor of a record is.

    Attributes:
        shape: Its dimensions: a letter of `raas_kernels.buffers`, a number, or a letter ``+1``.
        dtype: Its type; None for the type of the queries.
        written_by: The ops, or whoever else writes it.
        holds: What it holds.
    """

    shape: tuple[str, ...]
    dtype: torch.dtype | None
    written_by: str
    holds: str

    def size(self, sizes: Sizes) -> tuple[int, ...]:
        """The shape in numbers."""
        return _size(self.shape, sizes)


def tensor(shape: str, dtype: torch.dtype | None, written_by: str, holds: str) -> Any:
    """Declares a field of a record, as of `Declaration`."""
    return field(metadata={"is": Declaration(tuple(shape.split()), dtype, written_by, holds)})


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(tensor,))
def record(cls: type) -> Any:
    """Makes a class of declared tensors; they are given by name."""
    return dataclass(frozen=True, kw_only=True, eq=False)(cls)


class Record:
    """What every record of tensors can do."""

    @classmethod
    def declared(cls) -> dict[str, Declaration]:
        """Its tensors by name, in their order."""
        return {each.name: each.metadata["is"] for each in fields(cls)}  # type: ignore[arg-type]

    @classmethod
    def zeros(cls, sizes: Sizes, device: torch.device | str, dtype: torch.dtype) -> Self:
        """Allocates it.

        Args:
            sizes: Of every letter of its shapes.
            device: Of all tensors.
            dtype: Of the queries.
        """
        return cls(
            **{
                name: torch.zeros(each.size(sizes), dtype=each.dtype or dtype, device=device)
                for name, each in cls.declared().items()
            }
        )

    @classmethod
    def num_bytes(cls, sizes: Sizes, dtype: torch.dtype) -> int:
        """Memory that `zeros` takes."""
        return sum(
            math.prod(each.size(sizes)) * (each.dtype or dtype).itemsize
            for each in cls.declared().values()
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors by name."""
        return {name: getattr(self, name) for name in self.declared()}

    def pointers(self, *names: str) -> dict[str, torch.Tensor]:
        """Arguments of a kernel: the named tensors, or all, under their names with ``_ptr``."""
        return {f"{name}_ptr": getattr(self, name) for name in names or self.declared()}

    @cached_property
    def sizes(self) -> dict[str, int]:
        """What the letters stand for, once a kernel can address every tensor.

        Raises:
            ValueError: one has another shape or type, or is not contiguous.
        """
        sizes: dict[str, int] = {}
        for name, each in self.declared().items():
            value: torch.Tensor = getattr(self, name)
            is_view = each.shape[0] == "Y" and value.dim() == len(each.shape) - 1  # of a layer
            shape = each.shape[1:] if is_view else each.shape
            require_layout(name, value, shape, each.dtype or value.dtype, sizes)
        return sizes

    def layer(self, index: int) -> Self:
        """Views of one layer, counted from this rank's first; Y is the first of all dimensions."""
        return self._layers[index]

    @cached_property
    def _layers(self) -> list[Self]:
        parts = (value.unbind() for value in self.tensors().values())
        return [
            type(self)(**dict(zip(self.declared(), views, strict=True)))
            for views in zip(*parts, strict=True)
        ]


def agreed(*records: Record) -> dict[str, int]:
    """Sizes of the letters of several records, which must be the same in all.

    Raises:
        ValueError: they are not, or a kernel cannot address a tensor.
    """
    sizes: dict[str, int] = {}
    for each in records:
        for letter, size in each.sizes.items():
            if sizes.setdefault(letter, size) != size:
                raise ValueError(
                    f"{type(each).__name__} must have {letter} = {sizes[letter]} as the tensors "
                    f"beside it, got {size}"
                )
    return sizes


def require_layout(
    name: str,
    value: torch.Tensor,
    shape: tuple[str, ...],
    dtype: torch.dtype,
    sizes: dict[str, int],
) -> None:
    """Checks that a kernel can address a tensor.

    Args:
        name: What the error calls it.
        value: To be checked.
        shape: What it must be, as of `Declaration`.
        dtype: What it must be.
        sizes: Of the letters that are known; those that are not become so.

    Raises:
        ValueError: it has another shape or type, or is not contiguous.
    """
    for dimension, size in zip(shape, value.shape, strict=False):
        letter, _, more = dimension.partition("+")
        if not letter.isdigit():
            sizes.setdefault(letter, size - int(more or 0))
    fits = value.dim() == len(shape) and tuple(value.shape) == _size(shape, sizes)
    if not (fits and value.dtype == dtype and value.is_contiguous()):
        wanted = ", ".join(f"{each} = {sizes[each]}" if each in sizes else each for each in shape)
        raise ValueError(
            f"{name} must be contiguous {dtype} [{wanted}], got {value.dtype} "
            f"{list(value.shape)} with strides {value.stride()}"
        )


def _size(shape: tuple[str, ...], sizes: Sizes) -> tuple[int, ...]:
    parts = (dimension.partition("+") for dimension in shape)
    return tuple(
        int(letter) if letter.isdigit() else sizes[letter] + int(more or 0)
        for letter, _, more in parts
    )
