"""Families of models on a GPU, with the kernels that SGLang has for them there alone.

Shapes that people serve have dummy weights and few layers; `--weights FOLDER...` tests real models
in the same way. Tiny models are compared with transformers', as on the CPU
(`tests/server/test_families.py`), also of families that need a GPU.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from benchmarks.harness.server import STRICT, LocalServer
from client import (
    EVICTING,
    FOREVER,
    assert_report,
    assert_same_answer,
    flush_cache,
    generate,
    together,
)
from families import GPU_FAMILIES, make_model
from masked_model import MaskedModel, kept_tokens
from raas_sglang.policies import POLICIES

pytestmark = pytest.mark.gpu

COMMON = {
    **{"num_hidden_layers": 4, "num_attention_heads": 32, "num_key_value_heads": 8},
    **{"head_dim": 128, "hidden_act": "silu", "attention_bias": False, "torch_dtype": "bfloat16"},
    **{"bos_token_id": 1, "eos_token_id": None, "tie_word_embeddings": False},
}
QWEN3 = {
    **{"vocab_size": 151936, "max_position_embeddings": 40960},
    **{"rope_theta": 1000000.0, "rms_norm_eps": 1e-6},
}
SHAPES = {
    "qwen3-8b": {
        **{**COMMON, **QWEN3, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"},
        **{"hidden_size": 4096, "intermediate_size": 12288},
    },
    "qwen3-30b-a3b": {
        **{**COMMON, **QWEN3, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"},
        **{"hidden_size": 2048, "intermediate_size": 6144, "num_key_value_heads": 4},
        **{"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
        **{"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
    },
    "llama-3.1-8b": {
        **{**COMMON, "architectures": ["LlamaForCausalLM"], "model_type": "llama"},
        **{"hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 128256},
        **{"max_position_embeddings": 131072, "rope_theta": 500000.0, "rms_norm_eps": 1e-5},
        "rope_scaling": {
            **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0},
            **{"high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
        },
    },
}
SHAPES["qwen3-next-80b-a3b"] = {  # with fewer experts
    **{**SHAPES["qwen3-30b-a3b"], "num_experts": 64, "num_experts_per_tok": 10},
    **{"architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next"},
    **{"num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256},
    **{"partial_rotary_factor": 0.25, "full_attention_interval": 4, "intermediate_size": 5120},
    **{"moe_intermediate_size": 512, "shared_expert_intermediate_size": 512},
    **{"linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_conv_kernel_dim": 4},
    **{"linear_key_head_dim": 128, "linear_value_head_dim": 128},
}
SHAPES["nemotron-3-nano-30b-a3b"] = {  # with fewer experts
    **{**COMMON, "architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h"},
    **{"hybrid_override_pattern": "MEM*EME*", "num_hidden_layers": 8, "num_key_value_heads": 2},
    **{"hidden_size": 2688, "intermediate_size": 1856, "vocab_size": 131072},
    **{"mamba_num_heads": 64, "mamba_head_dim": 64, "n_groups": 8, "ssm_state_size": 128},
    **{"chunk_size": 128, "conv_kernel": 4, "layer_norm_epsilon": 1e-5},
    **{"n_routed_experts": 32, "num_experts_per_tok": 6, "moe_intermediate_size": 1856},
    **{"moe_shared_expert_intermediate_size": 3712, "routed_scaling_factor": 2.5},
    "max_position_embeddings": 262144,
}
# Weights that the server itself quantises as it loads them.
QUANTISED = {"qwen3-8b-fp8": ("--quantization", "fp8")}
SHAPES["qwen3-8b-fp8"] = SHAPES["qwen3-8b"]
# Requests that all run at once hold 3,328 tokens of a pool of 4,096, and write 17,280.
RUNNING, PROMPT, BUDGET, TOKENS = 32, 40, 64, 500
FLAGS = (
    *("--skip-tokenizer-init", "--skip-server-warmup", "--sleep-on-idle"),
    *("--max-total-tokens", "4096", "--max-running-requests", str(RUNNING)),
    *("--cuda-graph-max-bs-decode", str(RUNNING), "--disable-prefill-cuda-graph"),
    *("--prefill-attention-backend", "fa3", "--decode-attention-backend", "flashinfer"),
    *("--mem-fraction-static", "0.85", "--max-mamba-cache-size", str(6 * RUNNING)),
    # What SGLang chooses for Nemotron-H compiles for many minutes, and tunes itself by timing.
    *("--moe-runner-backend", "triton"),
)
DUMMY = ("--load-format", "dummy")
RAAS = ("--kv-policy", "raas", "--kv-budget", "64", "--kv-max-budget", "512")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A pair of servers for each shape, and for each real model that is named."""
    if "servers" in metafunc.fixturenames:
        models: list[str | Path] = [*SHAPES, *metafunc.config.getoption("--weights")]
        names = [Path(model).name for model in models]
        metafunc.parametrize("servers", models, ids=names, indirect=True, scope="module")


@pytest.fixture(scope="module")
def servers(request, tmp_path_factory):
    """SGLang without a plugin, and RaaS."""
    flags, path = list(FLAGS), request.param
    if path in SHAPES:
        path = tmp_path_factory.mktemp(path)
        (path / "config.json").write_text(json.dumps(SHAPES[request.param]))
        flags += (*DUMMY, *QUANTISED.get(request.param, ()))
        if SHAPES[request.param]["head_dim"] > 128:  # not every build of fa3 has such heads
            flags += ("--prefill-attention-backend", "flashinfer")
    environment = {**os.environ, **STRICT}
    plain = LocalServer(flags, {**environment, "SGLANG_PLUGINS": "none"}, path)
    ours = LocalServer([*flags, *RAAS], environment, path)
    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(LocalServer.start, (plain, ours)))
        yield plain, ours
        assert ours.is_alive(), ours.log_end()
    finally:
        plain.stop()
        ours.stop()


def prompt(index: int) -> list[int]:
    """Tokens that every vocabulary here has."""
    return [(index * 7919 + place * place * 31 + 5) % 40_000 for place in range(PROMPT)]


def ask(server, index: int, policy: str | None, budget: int | None, tokens: int, **extra) -> dict:
    return generate(server, prompt(index), policy, budget, tokens, **FOREVER, **extra)


@pytest.mark.parametrize(("policy", "budget"), [("dense", None), ("raas", 512), ("raas", 256)])
def test_dense_identity(servers, policy, budget):
    """To the end, or to where a budget is full and what is stored has been tracked all along."""
    plain, ours = servers
    answers = []
    for server, choice in ((plain, (None, None)), (ours, (policy, budget))):
        flush_cache(server)
        answers.append(ask(server, 0, *choice, tokens=400, return_logprob=True))
    assert_same_answer(*answers, 256 if budget == 256 else 400)
    assert "kv_policy" not in answers[0]["meta_info"]
    assert_report(answers[1], policy, budget)


def test_more_is_generated_than_the_pool_holds(servers):
    _, ours = servers
    choices = [EVICTING[index % len(EVICTING)] for index in range(RUNNING)]
    answers = together(
        [
            lambda index=index, policy=policy: ask(ours, index, policy, BUDGET, TOKENS)
            for index, policy in enumerate(choices)
        ]
    )
    for policy, answer in zip(choices, answers, strict=True):
        assert_report(answer, policy, BUDGET)
        info = answer["meta_info"]
        assert len(answer["output_ids"]) == TOKENS
        assert info["resident_tokens"] == PROMPT + BUDGET
        assert info["evicted_tokens"] == TOKENS - 1 - BUDGET
        assert info["num_retractions"] == 0
    flush_cache(ours)
    assert ours.used_tokens() == 0
    decodes = [line for line in ours.log().splitlines() if "Decode batch" in line]
    assert decodes
    assert all("cuda graph: True" in line for line in decodes)


# Its state carries an error on, so these must make less of it.
CALM = {"initializer_range": 0.02, "rms_norm_eps": 0.01}
CALM_NEMOTRON = {"initializer_range": 0.02, "layer_norm_epsilon": 0.01}
WITH_LINEAR = {
    **{"qwen3-next": CALM, "qwen3.5": CALM, "qwen3.5-moe-vision": CALM},
    **{"nemotron-h": CALM_NEMOTRON, "nemotron-h-moe": CALM_NEMOTRON, "falcon-h1": {}},
    "granite-4": {"initializer_range": 0.03, "attention_multiplier": 1.5, "mamba_n_heads": 64},
}
TINY = ("llama", "qwen3", "qwen3-moe", "glm4", "glm4-moe", *{**WITH_LINEAR, **GPU_FAMILIES})
LAYERS, KV_HEADS = 2, 2  # with keys and values; of linear attention there may be more
# Heads that FlashInfer has; weights by which attention to a token more or less is worth much.
TINY_SHAPE = {
    **{"num_attention_heads": 8, "num_key_value_heads": KV_HEADS},
    **{"head_dim": 64, "hidden_size": 512, "initializer_range": 0.05},
    "max_position_embeddings": 1024,
}
TINY_BUDGET, TINY_TOKENS = 32, 128


@pytest.fixture(scope="module")
def tiny_servers(tmp_path_factory):
    """They start side by side; a family by name, its folder and its server to come."""
    paths = {family: tmp_path_factory.mktemp(family) for family in TINY}
    for family, path in paths.items():
        make_model(family, path, torch.bfloat16, **{**TINY_SHAPE, **WITH_LINEAR.get(family, {})})
    environment = {**os.environ, **STRICT}
    made = {name: LocalServer([*FLAGS, *RAAS], environment, path) for name, path in paths.items()}
    with ThreadPoolExecutor(len(TINY)) as pool:
        starts = {name: pool.submit(server.start) for name, server in made.items()}
        yield paths, made, starts
        list(pool.map(LocalServer.stop, made.values()))


@pytest.mark.parametrize("policy", ["window", "random"])
@pytest.mark.parametrize("family", TINY)
def test_attention_sees_what_is_kept(tiny_servers, family, policy):
    """What these policies give up does not depend on scores, so it is known beforehand."""
    paths, made, starts = tiny_servers
    starts[family].result()
    ids = [(index * index + 5) % 128 for index in range(PROMPT)]
    answer = generate(made[family], ids, policy, TINY_BUDGET, TINY_TOKENS, return_logprob=True)
    assert_report(answer, policy, TINY_BUDGET)
    output_ids, steps = answer["output_ids"], TINY_TOKENS - 1
    places = torch.empty(steps, LAYERS, KV_HEADS, dtype=torch.int64)
    for layer in range(LAYERS):
        for head in range(KV_HEADS):
            naive = POLICIES[policy].rule(TINY_BUDGET, (layer, head), 1.0, [])
            places[:, layer, head] = torch.tensor(
                [naive.store(step, [], []) for step in range(steps)]
            )
    kept = kept_tokens(places, TINY_BUDGET)
    found = torch.tensor([entry[0] for entry in answer["meta_info"]["output_token_logprobs"]])
    model, chosen = MaskedModel(paths[family]), torch.tensor(output_ids)[:, None]

    def error(kept: torch.Tensor) -> float:
        """Mean over the steps that evict, in nats."""
        wanted = model.logprobs(ids, output_ids, kept).gather(1, chosen)[:, 0]
        return float((found - wanted).abs()[TINY_BUDGET + 1 :].mean())

    as_kept, as_dense = error(kept), error(torch.ones_like(kept).tril())
    assert as_kept < 0.05, "bfloat16 is worth 0.01"
    assert as_dense > 5 * as_kept, "what was given up must matter"


@pytest.mark.parametrize("family", WITH_LINEAR)
def test_the_next_turn_is_the_same_on_a_cold_and_a_warm_tree(tiny_servers, family):
    """A state of linear attention that decoding left in the tree is that of the text."""
    _, made, starts = tiny_servers
    starts[family].result()
    ids = [(index * index + 7) % 128 for index in range(300)]
    first = generate(made[family], ids, "raas", 512, 300, **FOREVER)
    turn, answers = [*ids, *first["output_ids"], 5, 6], []
    for cached in (512, 0):  # a multiple of --mamba-track-interval
        answer = generate(made[family], turn, "raas", 64, 100, return_logprob=True, **FOREVER)
        assert answer["meta_info"]["cached_tokens"] == cached
        answers.append(answer)
        flush_cache(made[family])
    both = [answer["output_ids"] for answer in answers]
    same = next((i for i, pair in enumerate(zip(*both, strict=True)) if len({*pair}) > 1), 100)
    logprobs = [[e[0] for e in a["meta_info"]["output_token_logprobs"]] for a in answers]
    apart = torch.tensor(logprobs).diff(dim=0).abs()[0, : same + 1]  # also where two were tied
    assert apart.mean() < 0.05, "bfloat16 is worth 0.01"
