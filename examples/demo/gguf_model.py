"""Turns a GGUF file into a Hugging Face folder, which SGLang serves without kernels for GGUF."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint


def convert(gguf: Path, folder: Path) -> None:
    """Writes configuration, tokenizer and dequantised bfloat16 weights.

    Args:
        gguf: A file of an architecture that transformers reads, such as ``llama``.
        folder: Made where it is missing.

    Raises:
        ValueError: transformers cannot read the file, or the file lacks a weight of the model.
    """
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    # `from_pretrained` would do the same, but wants accelerate, which SGLang does not bring.
    read = load_gguf_checkpoint(str(gguf), return_tensors=True, model_to_load=model)["tensors"]
    weights = {name: weight.to(torch.bfloat16) for name, weight in read.items()}
    unknown = model.load_state_dict(weights, strict=False, assign=True).unexpected_keys
    model.tie_weights()
    missing = [name for name, weight in model.named_parameters() if weight.is_meta]
    if missing or unknown:
        raise ValueError(
            f"{gguf} must hold the weights of a {type(model).__name__} and no others, "
            f"got none for {missing} and others for {unknown}; use a file of that architecture"
        )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers takes the end from the first token that looks like one, and not from the file.
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    tokenizer.clean_up_tokenization_spaces = False  # right for BPE, which keeps its spaces
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
