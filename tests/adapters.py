"""Two random LoRA adapters over one prompt: what each reads of the radix tree, and answers."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from client import FOREVER, assert_report, flush_cache, generate, post, problem, together, token_ids
from reasoner import REASONER

RANK = 16
MODULES = ("q_proj", "k_proj", "v_proj")
# A server takes adapters that it does not know yet.
FLAGS = ("--enable-lora", "--max-lora-rank", str(RANK), "--lora-target-modules", *MODULES)
BUDGET, TOKENS = 64, 100


def write_adapter(folder: Path, seed: int) -> None:
    """Writes an adapter of the bundled reasoner as PEFT does; strong enough to change answers."""
    folder.mkdir()
    config = json.loads((REASONER / "config.json").read_text())
    width, head_dim = config["hidden_size"], config["head_dim"]
    heads = {"q_proj": config["num_attention_heads"]}
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for module in MODULES:
            out = heads.get(module, config["num_key_value_heads"]) * head_dim
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            for part, size in (("lora_A", (RANK, width)), ("lora_B", (out, RANK))):
                weights[f"{name}.{part}.weight"] = torch.randn(size, generator=generator) / 4
    save_file(weights, folder / "adapter_model.safetensors")
    kind = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "lora_dropout": 0.0}
    size = {"r": RANK, "lora_alpha": RANK, "target_modules": list(MODULES)}
    (folder / "adapter_config.json").write_text(json.dumps({**kind, **size}))


def assert_the_tree_keeps_adapters_apart(server, folder: Path) -> None:
    """Nobody reads what another one wrote for the same tokens, saturated or not."""
    ids = token_ids(server, problem(8).prompt)
    names = [None, "first", "second"]
    for seed, name in enumerate(names[1:]):
        write_adapter(folder / name, seed)
        loaded = {"lora_name": name, "lora_path": str(folder / name)}
        assert post(server, "/load_lora_adapter", loaded).ok

    def ask(name, prompt, tokens) -> dict:
        extra = FOREVER if name is None else {"lora_path": name, **FOREVER}
        answer = generate(server, prompt, "raas", BUDGET, tokens, **extra)
        assert_report(answer, "raas", BUDGET)
        return answer

    def cached(name, prompt) -> int:
        return ask(name, prompt, 1)["meta_info"]["cached_tokens"]

    rounds = []
    for order in (names, names[::-1]):
        flush_cache(server)
        answers = {name: ask(name, ids, TOKENS) for name in order}
        assert [answer["meta_info"]["cached_tokens"] for answer in answers.values()] == [0, 0, 0]
        rounds.append({name: answer["output_ids"] for name, answer in answers.items()})
    assert rounds[0] == rounds[1], "whoever was there before"
    texts = {tuple(tokens) for tokens in rounds[0].values()}
    assert len(texts) == len(names), "the adapters change the answers"
    for name in names:
        saturated = [*ids, *rounds[0][name], 5]
        assert cached(name, saturated) == len(ids), "the tree has the prompt alone"
    short = ask("first", ids, 40)["output_ids"]
    turns = [cached(name, [*ids, *short, 5]) for name in names]
    assert turns == [len(ids), len(ids) + 40, len(ids)], "the answer is the first one's alone"
    together([lambda name=name: ask(name, ids, TOKENS) for name in names * 2])
    flush_cache(server)
    assert server.used_tokens() == 0
    for name in names[1:]:
        assert post(server, "/unload_lora_adapter", {"lora_name": name}).ok
