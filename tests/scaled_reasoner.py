"""The bundled reasoner with scales for a quantised KV cache, as a checkpoint has them."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from reasoner import REASONER

# Numbers that bfloat16 rounds; what the reasoner stores reaches 16, a good part of 448 of these.
K_SCALE, V_SCALE, STEP = 0.05, 0.03, 0.01
_SCHEME = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True}
_QUANTISED = {
    "quant_method": "compressed-tensors",
    "format": "naive-quantized",
    "config_groups": {},
    "ignore": [],
    "kv_cache_scheme": {**_SCHEME, "dynamic": False},
}


def scaled_reasoner(folder: Path) -> Path:
    """Makes it in an empty folder, of links and the scales of each layer; returns the folder."""
    config = json.loads((REASONER / "config.json").read_text())
    for path in REASONER.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": _QUANTISED}))
    scales = {}
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}.self_attn.attn."  # SGLang's Qwen2 renames none
        scales[name + "k_scale"] = torch.tensor(K_SCALE + STEP * layer)
        scales[name + "v_scale"] = torch.tensor(V_SCALE + STEP * layer)
    save_file(scales, folder / "scales.safetensors")
    return folder
