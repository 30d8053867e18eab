"""Tiny models of the families that people serve; random weights whose greedy text varies."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

from reasoner import REASONER

SHAPE = {
    **{"vocab_size": 128, "hidden_size": 96, "intermediate_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 512},
    **{"bos_token_id": None, "eos_token_id": None, "pad_token_id": None},
    **{"initializer_range": 0.15, "tie_word_embeddings": False},
}
WIDE = {"head_dim": 32}  # query heads that are wider together than the hidden states
LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0},
    **{"high_freq_factor": 4.0, "original_max_position_embeddings": 64},
}
GRANITE = {
    **{"attention_multiplier": 0.1, "embedding_multiplier": 3.0},
    **{"residual_multiplier": 0.5, "logits_scaling": 0.5},
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
# Neither the first nor the last layer has keys and values.
LINEAR = {
    **{"num_hidden_layers": 5, "full_attention_interval": 2},
    "layer_types": ["linear_attention", "full_attention"] * 2 + ["linear_attention"],
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4},
    **{"linear_key_head_dim": 32, "linear_value_head_dim": 32},
    "rms_norm_eps": 1e-3,  # or the norm after it makes much of little
}
NO_SHARED = {"num_experts": 4, "shared_expert_intermediate_size": 0}
PATTERN = "hybrid_override_pattern"
NEMOTRON_H = {
    **{"mamba_num_heads": 16, "mamba_head_dim": 8, "n_groups": 8, "ssm_state_size": 16},
    **{"chunk_size": 32, "layer_norm_epsilon": 1e-3},
}
MAMBA2 = {
    **{"mamba_n_heads": 12, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 16},
    **{"mamba_chunk_size": 64, "rms_norm_eps": 1e-3},
}
FALCON_H1 = {
    **{**MAMBA2, "mamba_d_ssm": 192, "key_multiplier": 0.8, "ssm_in_multiplier": 1.2},
    **{"attention_in_multiplier": 1.1, "attention_out_multiplier": 0.9},
    **{"ssm_multipliers": [0.9, 1.1, 0.8, 1.2, 0.7], "ssm_out_multiplier": 0.6},
    **{"embedding_multiplier": 1.5, "lm_head_multiplier": 0.9, "mlp_multipliers": [0.7, 1.3]},
}
GRANITE_4 = {
    **{**MAMBA2, **GRANITE, "num_hidden_layers": 4, "num_experts_per_tok": 2},
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
VISION = {
    **{"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2},
    "num_position_embeddings": 16,
}
# Name of transformers' configuration, and what differs from the shape and from its own defaults.
FAMILIES = {
    "llama": ("LlamaConfig", {**WIDE, "rope_parameters": LLAMA3}),
    "mistral": ("MistralConfig", {**WIDE, "sliding_window": None}),
    "ministral3": ("Ministral3Config", {**WIDE, "sliding_window": None}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "sliding_window": None}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", WIDE),
    "qwen3-moe": ("Qwen3MoeConfig", {**WIDE, **EXPERTS, "num_experts": 4}),
    "qwen3-next": (
        "Qwen3NextConfig",
        {**WIDE, **EXPERTS, **LINEAR, **NO_SHARED},
    ),
    "qwen3.5": ("Qwen3_5TextConfig", {**WIDE, **LINEAR}),
    "qwen3.5-moe": ("Qwen3_5MoeTextConfig", {**WIDE, **EXPERTS, **LINEAR, **NO_SHARED}),
    "qwen3.5-vision": ("Qwen3_5Config", {**WIDE, **LINEAR}),
    "qwen3.5-moe-vision": ("Qwen3_5MoeConfig", {**WIDE, **EXPERTS, **LINEAR, **NO_SHARED}),
    "nemotron-h": ("NemotronHConfig", {**WIDE, **NEMOTRON_H, PATTERN: "M-*M*-"}),
    "falcon-h1": ("FalconH1Config", FALCON_H1),
    "granite-4": ("GraniteMoeHybridConfig", {**GRANITE_4, "num_local_experts": 0}),
    "granite-4-moe": ("GraniteMoeHybridConfig", {**GRANITE_4, "num_local_experts": 4}),
    "phi3": ("Phi3Config", {"sliding_window": None}),
    "glm4": ("Glm4Config", WIDE),
    "glm4-moe": (
        "Glm4MoeConfig",
        {**WIDE, **EXPERTS, "n_routed_experts": 4, "first_k_dense_replace": 1},
    ),
    "olmo2": ("Olmo2Config", {}),
    "olmoe": ("OlmoeConfig", {**EXPERTS, "num_experts": 4, "num_key_value_heads": 6}),
    "granite": ("GraniteConfig", GRANITE),
    "granite-moe": ("GraniteMoeConfig", {**GRANITE, "num_local_experts": 4}),
    "cohere": ("CohereConfig", {"tie_word_embeddings": True}),
    "starcoder2": ("Starcoder2Config", {"sliding_window": None}),
}
# With kernels of SGLang's that a CPU does not have.
GPU_FAMILIES = {
    "qwen2-moe": (
        "Qwen2MoeConfig",
        {**EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 32},
    ),
    "minimax-m2": (
        "MiniMaxM2Config",
        {
            **{"num_local_experts": 4, "num_experts_per_tok": 2, "scoring_func": "sigmoid"},
            **{"use_qk_norm": True, "use_routing_bias": True},
        },
    ),
    "nemotron-h-moe": (
        "NemotronHConfig",
        {
            **{**WIDE, **NEMOTRON_H, **EXPERTS, PATTERN: "ME*ME*"},
            **{"n_routed_experts": 4, "moe_shared_expert_intermediate_size": 32},
            "moe_latent_size": 48,
        },
    ),
}
# With layers that RaaS refuses.
REFUSED_FAMILIES = {
    "olmo3": (
        "Olmo3Config",
        {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 32},
    ),
    "llama4": (
        "Llama4TextConfig",
        {"num_local_experts": 4, "intermediate_size_mlp": 64, "attention_chunk_size": 32},
    ),
    "smollm3": ("SmolLM3Config", {}),  # SGLang runs it on transformers' layers
}


def make_model(family: str, path: Path, dtype: torch.dtype = torch.float32, **others: Any) -> None:
    """Writes a model.

    Args:
        family: Its name.
        path: Folder to write to.
        dtype: Of its weights.
        **others: What else its configuration is to have.
    """
    config, changes = {**FAMILIES, **GPU_FAMILIES, **REFUSED_FAMILIES}[family]
    kind, made = transformers.AutoModelForCausalLM, getattr(transformers, config)
    values = {**SHAPE, **changes, **others}
    if "vision_config" in made.sub_configs:
        kind, values = transformers.AutoModelForImageTextToText, _with_vision(values, path)
    torch.manual_seed(4)
    model = kind.from_config(made(**values), dtype=dtype)
    for name, parameter in model.named_parameters():  # fresh biases are 0, and norms 1
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, *((-0.3, 0.3) if "bias" in name else (0.5, 1.5)))
    weights = {name: value for name, value in model.state_dict().items() if value.numel()}
    model.save_pretrained(path, state_dict=weights)
    if PATTERN in values:  # transformers writes names of layers that SGLang does not know
        file = path / "config.json"
        written = json.loads(file.read_text())
        del written["layers_block_type"]
        file.write_text(json.dumps({**written, PATTERN: values[PATTERN]}))


def _with_vision(text: dict[str, Any], path: Path) -> dict[str, Any]:
    """A model that reads text, and could look at images, for which SGLang wants a processor."""
    for file in REASONER.glob("tokenizer*"):
        shutil.copy(file, path)
    transformers.Qwen2VLImageProcessor().save_pretrained(path)
    transformers.Qwen3VLVideoProcessor().save_pretrained(path)
    vision = {**VISION, "out_hidden_size": text["hidden_size"]}
    return {"text_config": text, "vision_config": vision}
