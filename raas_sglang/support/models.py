"""Models that RaaS does not work with, each refused by name once it is loaded.

A saturated row holds the prompt and tokens from anywhere in the text, in no order. A layer that
attends by distance, or to something other than the text so far, would silently read the wrong ones.
The attributes of the loaded layers decide, since names of architectures and keys of a configuration
do not say what a layer does; sinks, which layers do not tell, are refused before (`architectures`).
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.model_executor.cuda_graph_config import Backend
from sglang.srt.runtime_context import get_exec, get_memory, get_schedule

from raas_kernels import KVScales
from raas_sglang.pool import RaasTokenToKVPool, unwrapped
from raas_sglang.support.architectures import of_another_kind

# Attributes of a layer: the value that each must have, and what another value means. A window is
# recognised by its size; `RadixAttention` turns 0 and None into -1.
PLAIN = {
    "sliding_window_size": (-1, "a sliding window"),
    "is_cross_attention": (False, "cross attention"),
    "use_irope": (False, "chunked local attention"),
    "attn_type": (AttentionType.DECODER, "attention that is not causal"),
    "logit_cap": (0.0, "capped logits"),
    "pos_encoding_mode": ("NONE", "positions encoded within attention"),
    "xai_temperature_len": (-1, "a temperature by position"),
}
# What all layers must have in common: one pool, one page table and one launch serve them all.
EQUAL = ("tp_q_head_num", "tp_k_head_num", "tp_v_head_num", "qk_head_dim", "v_head_dim", "scaling")
# Models some of whose layers have linear attention, of the kinds that are tested.
LINEAR = (
    "Qwen3NextForCausalLM",
    "Qwen3_5ForCausalLM",
    "Qwen3_5MoeForCausalLM",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration",
    "NemotronHForCausalLM",
    "FalconH1ForCausalLM",
    "GraniteMoeHybridForCausalLM",
)
# Of these, those whose layers have Mamba beside attention.
MAMBA_WITHIN = ("FalconH1ForCausalLM",)
_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn)
_FLOAT8_CAPABILITY = (8, 9)  # the first GPUs that convert it


def require_model(model: Any, pool: Any) -> None:
    """Checks that every attention layer of a model is of a kind that RaaS is tested with.

    Args:
        model: The loaded model, a `torch.nn.Module`.
        pool: The KV cache that SGLang built for it.

    Raises:
        RuntimeError: one is not, or the pool is not the plain one, alone or beside the states of
            linear attention that RaaS is tested with.
    """
    name, whole, pool = type(model).__name__, pool, unwrapped(pool)
    if type(pool) is not RaasTokenToKVPool:
        raise RuntimeError(
            f"--kv-policy must run on a plain MHA KV cache, got {type(pool).__name__} for {name}; "
            "MLA, sliding-window and other caches are not supported: "
            "remove --kv-policy for this model"
        )
    if pool is not whole:
        _require_linear_attention(name, pool.dtype)
    if pool.dtype not in _DTYPES:
        raise RuntimeError(
            f"--kv-policy must run on keys and values of bfloat16, float16, float32 or "
            f"float8_e4m3fn, got {pool.dtype}, for which the checkpoint of {name} asks; use "
            "--kv-cache-dtype bfloat16"
        )
    if pool.dtype.itemsize == 1 and torch.device(pool.device).type == "cuda":
        capability = torch.cuda.get_device_capability(pool.device)
        if capability < _FLOAT8_CAPABILITY:
            raise RuntimeError(
                f"--kv-policy must run on keys and values of {pool.dtype} on GPUs of compute "
                f"capability 8.9 or later, got {capability}; use --kv-cache-dtype bfloat16"
            )
    layers = [module for module in model.modules() if isinstance(module, RadixAttention)]
    problems = [*_unlike_plain(layers), *_unequal(layers)]
    problems += _not_one_each(layers, pool.model_layer_ids)
    if problems:
        raise RuntimeError(of_another_kind(name, "; ".join(problems)))


def _require_linear_attention(name: str, dtype: torch.dtype) -> None:
    """Its state is that of the whole text; of a part of it there is none."""
    if name not in LINEAR:
        raise RuntimeError(
            f"--kv-policy must run on linear attention of {', '.join(LINEAR)}, got {name}; "
            "remove --kv-policy for this model"
        )
    if dtype.itemsize == 1:
        raise RuntimeError(
            f"--kv-policy is not tested with {name} and a KV cache of {dtype}, which "
            "--kv-cache-dtype or the checkpoint asks for; use --kv-cache-dtype bfloat16 if the "
            "checkpoint has no scales of keys and values, else remove --kv-policy"
        )
    if (
        name in MAMBA_WITHIN
        and get_exec().graph.cuda_graph_config.prefill.backend != Backend.DISABLED
    ):
        raise RuntimeError(
            f"--kv-policy must run without CUDA graphs of prefills for {name}: SGLang captures its "
            "Mamba layers as well, with the requests of the capture; use "
            "--disable-prefill-cuda-graph"
        )
    if get_memory().enable_hierarchical_cache:
        raise RuntimeError(
            f"--kv-policy does not work together with --enable-hierarchical-cache for {name}; "
            "remove one of them: the state of linear attention in the host's memory is not tested"
        )
    schedule = get_schedule()
    if schedule.enable_priority_scheduling and not schedule.disable_priority_preemption:
        raise RuntimeError(
            f"--kv-policy does not work together with preemption for {name}, since what was given "
            "up cannot be left out of linear attention when a request is computed again; "
            "use --disable-priority-preemption"
        )


def kv_scales(model: Any, pool: RaasTokenToKVPool) -> list[KVScales]:
    """What SGLang divides the keys and values of each layer by when it stores them.

    Args:
        model: As `require_model` accepts it.
        pool: The KV cache that SGLang built for it.

    Raises:
        RuntimeError: attention multiplies by something else.
    """
    layers = [module for module in model.modules() if isinstance(module, RadixAttention)]
    layers.sort(key=lambda layer: layer.layer_id)
    stored = [_stored_scales(layer, pool) for layer in layers]
    for layer, (k_scale, v_scale) in zip(layers, stored, strict=True):
        read = (layer.k_scale_float or 1.0, layer.v_scale_float or 1.0)
        if read != (k_scale, v_scale):
            raise RuntimeError(
                f"--kv-policy must run on keys and values that are multiplied by what they were "
                f"divided by, got {type(model).__name__} whose layer {layer.layer_id} divides by "
                f"{k_scale} and {v_scale} but multiplies by {read[0]} and {read[1]}, with a KV "
                f"cache of {pool.dtype}; use the --kv-cache-dtype that the checkpoint's scales are "
                "for, and no --quantization-param-path"
            )
    return [KVScales(*(None if scale == 1.0 else scale for scale in scales)) for scales in stored]


def _stored_scales(layer: RadixAttention, pool: RaasTokenToKVPool) -> tuple[float, float]:
    """A cache that is not quantised is not scaled either, whatever the checkpoint has."""
    if pool.dtype.itemsize > 1:
        return 1.0, 1.0
    k_scale, v_scale = (
        1.0 if scale is None else float(scale) for scale in (layer.k_scale, layer.v_scale)
    )
    return k_scale, v_scale


def _unlike_plain(layers: list[RadixAttention]) -> Iterator[str]:
    for attribute, (plain, kind) in PLAIN.items():
        others = [layer for layer in layers if getattr(layer, attribute) != plain]
        if others:
            value = getattr(others[0], attribute)
            yield f"{kind} ({attribute} {value}) in {_ids(layer.layer_id for layer in others)}"


def _unequal(layers: list[RadixAttention]) -> Iterator[str]:
    for attribute in EQUAL:
        values = sorted({getattr(layer, attribute) for layer in layers})
        if len(values) > 1:
            yield f"{attribute} that differs by layer ({', '.join(map(str, values))})"
    sizes = sorted({(layer.qk_head_dim, layer.v_head_dim) for layer in layers})
    if any(of_key != of_value for of_key, of_value in sizes):
        yield f"keys and values of different sizes ({', '.join(map(str, sizes))})"


def _not_one_each(layers: list[RadixAttention], expected: tuple[int, ...]) -> Iterator[str]:
    """Layers that share their keys and values with others, or have none.

    SGLang's Transformers backend has its layers where they cannot be seen.
    """
    count = Counter(layer.layer_id for layer in layers)
    wrong = sorted(i for i in {*count, *expected} if count[i] != 1 or i not in expected)
    if wrong:
        yield f"not one attention for each KV cache in {_ids(wrong)}"


def _ids(ids: Any) -> str:
    found = sorted(set(ids))
    return f"layer{'s' if len(found) > 1 else ''} {', '.join(map(str, found))}"
