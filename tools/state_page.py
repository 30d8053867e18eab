"""The page about the eviction state, docs/state.md, made out of its declarations."""

from inspect import cleandoc

import torch

from raas_kernels import EvictionBuffers, RequestTables, ScoreScratch, StepBuffers, buffers
from raas_kernels.record import Declaration

_HEAD = """\
# The eviction state

<!-- Made by tools/generate.py out of kernels/raas_kernels/buffers.py; do not edit. -->

What the kernels keep on the device beside the KV cache. Each tensor is declared once, in [`buffers.py`](../kernels/raas_kernels/buffers.py); its memory, the sizing of the pool, the check of layouts and the kernels' arguments follow from the declaration. [architecture.md](architecture.md) says when each op runs.
"""


def state_page() -> str:
    """A table for each record."""
    _, letters = cleandoc(buffers.__doc__ or "").split("\n\n", 1)
    parts = [_HEAD, _text(letters) + "\n"]
    for kind in (RequestTables, EvictionBuffers, StepBuffers, ScoreScratch):
        parts += [f"## `{kind.__name__}`\n", *_paragraphs(kind.__doc__ or "")]
        parts += [
            "| tensor | shape | type | written by | holds |",
            "| --- | --- | --- | --- | --- |",
        ]
        parts += [_row(name, each) for name, each in kind.declared().items()]
        parts.append("")
    return "\n".join(parts)


def _row(name: str, declared: Declaration) -> str:
    dtype = "that of the queries" if declared.dtype is None else _name(declared.dtype)
    shape = ", ".join(declared.shape)
    cells = (f"`{name}`", f"[{shape}]", dtype, declared.written_by, _text(declared.holds))
    return f"| {' | '.join(cells)} |"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _paragraphs(text: str) -> list[str]:
    return [_text(part) + "\n" for part in cleandoc(text).split("\n\n")]


def _text(text: str) -> str:
    return " ".join(text.replace("``", "`").split())
