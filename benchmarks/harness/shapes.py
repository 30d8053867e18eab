"""The models of the benchmarks: where their `config.json` is, and what their attention is like."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from reasoner import REASONER

SHAPES = Path(__file__).parents[1] / "shapes"


class AttentionShape(NamedTuple):
    """Layers of a model, and heads and head size of each."""

    layers: int
    q_heads: int
    kv_heads: int
    head_dim: int

    @property
    def bytes_per_slot(self) -> int:
        """Keys and values of one token in all layers, of 2 bytes each."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim


def model_path_of(shape: str) -> Path:
    """Folder with the `config.json` of a shape."""
    return REASONER if shape == "reasoner" else SHAPES / shape


def endless(model_path: Path) -> dict[str, Any]:
    """Sampling parameters with which a request generates as many tokens as it may.

    A request that ignores EOS is reserved in full by SGLang, so that fewer run than of requests
    which users send. The shapes have no EOS, so theirs need not ignore it.
    """
    return {"temperature": 0, **({"ignore_eos": True} if model_path == REASONER else {})}


def attention_shape(shape: str) -> AttentionShape:
    """Reads it from the model's `config.json`."""
    config = json.loads((model_path_of(shape) / "config.json").read_text())
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    layers, kv_heads = config["num_hidden_layers"], config["num_key_value_heads"]
    return AttentionShape(layers, heads, kv_heads, head_dim)
