"""Tiny random models for the tests of the study, and prompts for them."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from benchmarks.accuracy.study.decoder import Decoder, prefill

SHAPE = {
    **{"vocab_size": 64, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16, "eos_token_id": None},
    **{"bos_token_id": None, "initializer_range": 0.3},
}
LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0},
    **{"high_freq_factor": 4.0, "original_max_position_embeddings": 32},
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE, rope_parameters=LLAMA3, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE),
}
PROMPTS = [[5, 9, 33, 2], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [60], [7, 7, 8, 40, 1, 0]]
STEPS = 80
BUDGET = 16


def make_models(folder: Path) -> Path:
    """Saves a random model of each family under its name; returns the folder."""
    for name, config in CONFIGS.items():
        torch.manual_seed(4)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():  # a fresh model has no bias, and norms of one
            if parameter.dim() == 1:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        model.save_pretrained(folder / name)
    return folder


def decode(model, rule, budget=STEPS, prompts=PROMPTS):
    return Decoder(model, prefill(model, prompts), budget, STEPS).run(rule)
