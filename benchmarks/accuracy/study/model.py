"""A Llama, Qwen2 or Qwen3 checkpoint, cut where its attention reads the cache."""

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear, rms_norm, silu
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

MODEL_TYPES = ("llama", "qwen2", "qwen3")
ROTARY_TYPES = ("default", "linear", "llama3")  # one set of frequencies, and no scaling of logits


class Layer(NamedTuple):
    """Weights of one layer; projections that read the same input are one matrix."""

    attention_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    output: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


class Model:
    """What decoding needs of a checkpoint.

    Args:
        path: Folder in the format of Hugging Face.
        device: Where to compute.
        dtype: In what precision.
        is_float8: Whether keys and values are rounded as a KV cache of fp8_e4m3 rounds them
            with scales of 1.

    Raises:
        ValueError: the architecture or its rotary embedding is another one.
    """

    def __init__(
        self, path: Path, device: str, dtype: torch.dtype, is_float8: bool = False
    ) -> None:
        loaded = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device).eval()
        config = loaded.config
        if config.model_type not in MODEL_TYPES or getattr(config, "attention_bias", False):
            raise ValueError(
                f"the model must be one of {', '.join(MODEL_TYPES)}, without a bias of its output "
                f"projection, got {config.model_type} in {path}"
            )
        self.rotary = LlamaRotaryEmbedding(config).to(device)
        if self.rotary.rope_type not in ROTARY_TYPES:
            raise ValueError(
                f"the rotary embedding must be one of {', '.join(ROTARY_TYPES)}, "
                f"got {self.rotary.rope_type} in {path}"
            )
        self.device, self.dtype, self.eps = torch.device(device), dtype, config.rms_norm_eps
        self.query_heads, self.heads = config.num_attention_heads, config.num_key_value_heads
        self.size = getattr(config, "head_dim", None) or config.hidden_size // self.query_heads
        self.scale = self.size**-0.5
        self.context = config.max_position_embeddings
        self._as_stored = as_float8 if is_float8 else lambda x: x
        self.ends = _ends(loaded.generation_config, config.eos_token_id)
        weights = dict(loaded.state_dict())
        self.table = weights["model.embed_tokens.weight"]
        self.final_norm = weights["model.norm.weight"]
        self.vocabulary = weights["lm_head.weight"]
        self.layers = [
            _layer(weights, f"model.layers.{i}.") for i in range(len(loaded.model.layers))
        ]

    def embed(self, tokens: Tensor) -> Tensor:
        """Returns the first hidden states of tokens."""
        return embedding(tokens, self.table)

    def turns(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the rotary cosines and sines, each float32 [..., D / 2] for positions [...]."""
        angles = positions[..., None].float() * self.rotary.inv_freq
        return angles.cos(), angles.sin()

    def project(
        self, layer: Layer, hidden: Tensor, turns: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns turned queries [..., query heads, D], turned keys and values [..., heads, D]."""
        x = linear(self._norm(hidden, layer.attention_norm), layer.qkv, layer.qkv_bias)
        x = x.unflatten(-1, (self.query_heads + 2 * self.heads, self.size))
        q, k, v = x.split([self.query_heads, self.heads, self.heads], -2)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = self._norm(q, layer.q_norm), self._norm(k, layer.k_norm)
        return turned(q, *turns), self._as_stored(turned(k, *turns)), self._as_stored(v)

    def finish(self, layer: Layer, hidden: Tensor, mixed: Tensor) -> Tensor:
        """Returns the layer's output from its input and the mixed values [..., query heads, D]."""
        hidden = hidden + linear(mixed.flatten(-2), layer.output)
        gate, up = linear(self._norm(hidden, layer.mlp_norm), layer.gate_up).chunk(2, -1)
        return hidden + linear(silu(gate) * up, layer.down)

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns the logits of the next tokens [..., vocabulary]."""
        return linear(self._norm(hidden, self.final_norm), self.vocabulary)

    def next_tokens(self, hidden: Tensor) -> Tensor:
        """Returns the likeliest next tokens."""
        return self.logits(hidden).argmax(-1)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, (x.shape[-1],), weight, self.eps)


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `asked_model` reads besides ``--model-path``."""
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if cuda else "float32")
    parser.add_argument(
        "--kv-cache-dtype",
        choices=("auto", "fp8_e4m3"),
        default="auto",
        help="fp8_e4m3: keys and values as such a cache stores them, with scales of 1",
    )


def asked_model(args: argparse.Namespace) -> Model:
    """The model that a command line asks for."""
    is_float8 = args.kv_cache_dtype == "fp8_e4m3"
    return Model(args.model_path, args.device, getattr(torch, args.dtype), is_float8)


def as_float8(x: Tensor) -> Tensor:
    """Rounds to numbers of e4m3; what is too large becomes the largest."""
    return x.to(torch.float8_e4m3fn).to(x.dtype)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns vectors [..., heads, D] by the angles whose cosines and sines are [..., D / 2]."""
    cos, sin = cos[..., None, :], sin[..., None, :]
    low, high = x.float().chunk(2, -1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1).to(x.dtype)


def _ends(generation: GenerationConfig | None, config_end: int | list[int] | None) -> list[int]:
    found = generation.eos_token_id if generation and generation.eos_token_id else config_end
    return list(found) if isinstance(found, list) else [] if found is None else [found]


def _layer(weights: dict[str, Tensor], prefix: str) -> Layer:
    def one(name: str) -> Tensor:
        return weights.pop(prefix + name)

    def optional(*names: str) -> Tensor | None:
        found = [weights.pop(prefix + name, None) for name in names]
        return None if found[0] is None else torch.cat(found)

    return Layer(
        attention_norm=one("input_layernorm.weight"),
        qkv=torch.cat([one(f"self_attn.{x}_proj.weight") for x in "qkv"]),
        qkv_bias=optional(*(f"self_attn.{x}_proj.bias" for x in "qkv")),
        q_norm=optional("self_attn.q_norm.weight"),
        k_norm=optional("self_attn.k_norm.weight"),
        output=one("self_attn.o_proj.weight"),
        mlp_norm=one("post_attention_layernorm.weight"),
        gate_up=torch.cat([one(f"mlp.{x}_proj.weight") for x in ("gate", "up")]),
        down=one("mlp.down_proj.weight"),
    )
