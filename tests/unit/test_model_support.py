"""Models that must be refused: what the layers of SGLang's models can differ in."""

import inspect
import json
import re
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.layers.quantization.kv_cache import BaseKVCacheMethod
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.mem_cache.memory_pool import HybridLinearKVPool
from sglang.srt.models.llama import LlamaModel
from transformers import LlamaConfig

from conftest import refusal
from raas_kernels import KVScales
from raas_patches.weight_updater import update_weights_from_disk
from raas_sglang.pool import RaasTokenToKVPool
from raas_sglang.support import models
from raas_sglang.support.architectures import require_architecture
from raas_sglang.support.models import EQUAL, PLAIN, kv_scales, require_model

LAYERS = 4
SHAPE = {"num_heads": 4, "head_dim": 64, "scaling": 0.125, "num_kv_heads": 2}


class SomeForCausalLM(torch.nn.Module):
    def __init__(self, *changes):
        super().__init__()
        plain = [{} for _ in range(LAYERS - len(changes))]
        layers = enumerate([*changes, *plain])
        self.layers = torch.nn.ModuleList(
            RadixAttention(**{**SHAPE, "layer_id": index, **change}) for index, change in layers
        )


def pool(dtype=torch.bfloat16):
    made = RaasTokenToKVPool.__new__(RaasTokenToKVPool)
    made.dtype, made.device, made.model_layer_ids = dtype, "cuda", tuple(range(LAYERS))
    return made


def hybrid_pool(dtype=torch.bfloat16):
    """SGLang's pool of a model with linear attention, of whose layers four have keys and values."""
    made = HybridLinearKVPool.__new__(HybridLinearKVPool)
    made.full_kv_pool = pool(dtype)
    made.full_kv_pool.model_layer_ids = (1, 3, 5, 7)
    return made


def test_a_model_of_plain_layers_is_served():
    require_model(SomeForCausalLM(), pool())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sliding_window_size": 31}, r"a sliding window \(sliding_window_size 31\) in layer 0"),
        ({"is_cross_attention": True}, "cross attention"),
        ({"use_irope": True}, "chunked local attention"),
        ({"attn_type": AttentionType.DECODER_BIDIRECTIONAL}, "attention that is not causal"),
        ({"attn_type": AttentionType.ENCODER_ONLY}, "attention that is not causal"),
        ({"logit_cap": 30.0}, "capped logits"),
        ({"pos_encoding_mode": "ALIBI"}, "positions encoded within attention"),
        ({"head_dim": 128}, r"qk_head_dim that differs by layer \(64, 128\)"),
        ({"v_head_dim": 32}, "v_head_dim that differs by layer"),
        ({"num_heads": 8}, "tp_q_head_num that differs by layer"),
        ({"num_kv_heads": 4}, "tp_k_head_num that differs by layer"),
        ({"scaling": 1.0}, "scaling that differs by layer"),
        ({"layer_id": 3}, "not one attention for each KV cache in layers 0, 3"),
    ],
)
def test_a_layer_of_another_kind_is_refused_by_name(change, words):
    with pytest.raises(RuntimeError, match=rf"got SomeForCausalLM with .*{words}.*--kv-policy"):
        require_model(SomeForCausalLM(change), pool())


def test_all_layers_of_another_kind_are_refused_as_well():
    windows = [{"sliding_window_size": 31}] * LAYERS
    with pytest.raises(RuntimeError, match=r"a sliding window .* in layers 0, 1, 2, 3; remove"):
        require_model(SomeForCausalLM(*windows), pool())


def test_values_of_another_size_than_keys_are_refused():
    with pytest.raises(RuntimeError, match=r"keys and values of different sizes \(\(64, 32\)\)"):
        require_model(SomeForCausalLM(*[{"v_head_dim": 32}] * LAYERS), pool())


class Qwen3NextForCausalLM(SomeForCausalLM):
    def __init__(self):
        super().__init__(*({"layer_id": layer_id} for layer_id in (1, 3, 5, 7)))


class FalconH1ForCausalLM(Qwen3NextForCausalLM):
    pass


@pytest.fixture
def chosen(monkeypatch):
    """What a user chose, as `require_model` finds it."""
    made = SimpleNamespace(
        enable_hierarchical_cache=False,
        enable_priority_scheduling=False,
        disable_priority_preemption=False,
        graph=SimpleNamespace(
            cuda_graph_config=SimpleNamespace(prefill=SimpleNamespace(backend="breakable"))
        ),
    )
    for name in ("get_exec", "get_memory", "get_schedule"):
        monkeypatch.setattr(models, name, lambda: made)
    return made


def test_linear_attention_is_beside_the_layers_that_evict(chosen):
    require_model(Qwen3NextForCausalLM(), hybrid_pool())
    chosen.enable_priority_scheduling = chosen.disable_priority_preemption = True
    require_model(Qwen3NextForCausalLM(), hybrid_pool())


def test_other_linear_attention_is_refused_by_name(chosen):
    words = r"linear attention of Qwen3NextForCausalLM.*, got SomeForCausalLM; remove --kv-policy"
    with pytest.raises(RuntimeError, match=words):
        require_model(SomeForCausalLM(), hybrid_pool())


def test_float8_is_not_tested_beside_linear_attention(chosen):
    words = r"Qwen3NextForCausalLM and a KV cache of torch.float8_e4m3fn, .*dtype bfloat16"
    with pytest.raises(RuntimeError, match=words):
        require_model(Qwen3NextForCausalLM(), hybrid_pool(FLOAT8))


def test_mamba_beside_attention_in_a_layer_is_not_captured_with_it(chosen):
    with pytest.raises(RuntimeError, match=r"FalconH1ForCausalLM.*--disable-prefill-cuda-graph"):
        require_model(FalconH1ForCausalLM(), hybrid_pool())
    chosen.graph.cuda_graph_config.prefill.backend = "disabled"
    require_model(FalconH1ForCausalLM(), hybrid_pool())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("enable_hierarchical_cache", "--enable-hierarchical-cache for Qwen3NextForCausalLM"),
        ("enable_priority_scheduling", "use --disable-priority-preemption"),
    ],
)
def test_what_is_not_right_with_linear_attention_is_refused(chosen, name, words):
    setattr(chosen, name, True)
    with pytest.raises(RuntimeError, match=words):
        require_model(Qwen3NextForCausalLM(), hybrid_pool())


def test_a_kv_cache_that_is_not_plain_is_refused():
    """MLA and some models with windows come in pools of other classes."""
    words = "must run on a plain MHA KV cache, got SimpleNamespace for SomeForCausalLM"
    with pytest.raises(RuntimeError, match=words):
        require_model(SomeForCausalLM(), SimpleNamespace())


def test_a_checkpoint_that_asks_for_another_quantised_cache_is_refused():
    """With ``--kv-cache-dtype auto`` SGLang takes what the checkpoint says."""
    with pytest.raises(RuntimeError, match=r"float8_e5m2, .*use --kv-cache-dtype bfloat16"):
        require_model(SomeForCausalLM(), pool(torch.float8_e5m2))


def test_float8_needs_a_gpu_that_converts_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(RuntimeError, match=r"8.9 or later, got \(8, 0\); use --kv-cache-dtype"):
        require_model(SomeForCausalLM(), pool(FLOAT8))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    require_model(SomeForCausalLM(), pool(FLOAT8))


FLOAT8 = torch.float8_e4m3fn


def with_scales(k_scale, v_scale):
    """A model whose checkpoint has scales, as SGLang's own methods load them."""
    model = SomeForCausalLM()
    method = BaseKVCacheMethod(None)
    for layer in model.layers:
        method.create_weights(layer)
        layer.k_scale.fill_(k_scale * 2**layer.layer_id)
        layer.v_scale.fill_(v_scale)
        method.process_weights_after_loading(layer)
    return model


def test_scales_are_those_of_the_checkpoint():
    model = with_scales(0.25, 1.0)
    expected = [KVScales(scale) for scale in (0.25, 0.5, None, 2.0)]
    assert kv_scales(model, pool(FLOAT8)) == expected


@pytest.mark.parametrize("model", [SomeForCausalLM(), with_scales(-1.0, -1.0)])
@pytest.mark.parametrize("dtype", [FLOAT8, torch.bfloat16])
def test_without_scales_nothing_is_divided(model, dtype):
    assert kv_scales(model, pool(dtype)) == [KVScales()] * LAYERS


def test_scales_that_the_cache_is_not_divided_by_are_refused():
    """SGLang's attention multiplies by them whatever the cache is."""
    words = r"layer 0 divides by 1.0 and 1.0 but multiplies by 0.25 and 0.5, .*torch.bfloat16; use"
    with pytest.raises(RuntimeError, match=words):
        kv_scales(with_scales(0.25, 0.5), pool())


def test_scales_that_attention_does_not_multiply_by_are_refused(tmp_path):
    """As SGLang's Llama takes them from --quantization-param-path."""
    scales = {"dtype": "float8_e4m3fn", "scaling_factor": {0: dict.fromkeys(range(LAYERS), 0.5)}}
    path = tmp_path / "scales.json"
    path.write_text(json.dumps({"model_type": "llama", "kv_cache": scales}))
    model = SomeForCausalLM()
    attention = [SimpleNamespace(self_attn=SimpleNamespace(attn=each)) for each in model.layers]
    config = LlamaConfig(num_hidden_layers=LAYERS)
    loaded = SimpleNamespace(_kv_cache_parallel_layout=(0, 1), layers=attention, config=config)
    LlamaModel.load_kv_cache_scales(loaded, str(path))
    words = r"divides by 0.5 and 0.5 but multiplies by 1.0 and 1.0, .*--quantization-param-path"
    with pytest.raises(RuntimeError, match=words):
        kv_scales(model, pool(FLOAT8))


def test_weights_with_other_scales_are_an_update_that_failed():
    """Decode divides by those that the server was started with."""
    ours, done = pool(FLOAT8), (True, "Succeeded")
    ours.scales = kv_scales(with_scales(0.25, 1.0), ours)

    def updated(model, result=done):
        runner = SimpleNamespace(token_to_kv_pool=ours)
        updater = SimpleNamespace(get_model_runner=lambda: runner, get_model=lambda: model)
        return update_weights_from_disk(result, updater, "path", "auto")

    assert updated(with_scales(0.25, 1.0)) == done
    failed, why = updated(with_scales(0.5, 1.0))
    assert not failed
    assert "must have the scales that the server was started with" in why
    assert updated(with_scales(0.5, 1.0), (False, "no such path")) == (False, "no such path")


def test_nothing_else_can_differ_by_layer():
    """Whatever a layer of SGLang's can be told is looked at, or is no matter of attention."""
    looked_at = {"layer_id", "num_heads", "head_dim", "num_kv_heads", "v_head_dim", "scaling"}
    no_matter = {"self", "logit_capping_method", "quant_config", "prefix"}
    no_matter |= {"use_prefill_attention_wrapper"}  # of prefill in a CUDA graph alone
    parameters = set(inspect.signature(RadixAttention.__init__).parameters)
    assert parameters - looked_at - no_matter - set(PLAIN) == set()
    layer = SomeForCausalLM().layers[0]
    assert all(hasattr(layer, name) for name in (*PLAIN, *EQUAL))


GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 2048,
    "sliding_window": 32,
    "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
    "dtype": "bfloat16",
}


def test_a_server_for_a_model_with_windows_refuses_to_start(tmp_path):
    """SGLang's pool for Gemma 3 is a plain one, so nothing but the layers tells."""
    (tmp_path / "config.json").write_text(json.dumps(GEMMA3))
    flags = ("--load-format", "dummy", "--skip-tokenizer-init", "--max-total-tokens", "4000")
    words = "got Gemma3ForCausalLM with a sliding window (sliding_window_size 31) in layers 0, 1, 2"
    assert words in refusal(*flags, "--kv-policy", "raas", model_path=tmp_path)


KNOWN_BY_CONFIGURATION = {
    "GptOssForCausalLM with attention sinks and sliding windows": {
        **{"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "hidden_size": 64},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 512},
        **{"num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "DeepseekV2ForCausalLM with latent attention (MLA)": {
        **{"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2"},
        **{"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 512},
        **{"kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16},
    },
    "Gemma4ForCausalLM with sliding windows": {
        **{**GEMMA3, "architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text"},
        "global_head_dim": 32,
    },
}


@pytest.mark.parametrize("words", KNOWN_BY_CONFIGURATION)
def test_a_configuration_gives_a_model_away(words, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(KNOWN_BY_CONFIGURATION[words]))
    with pytest.raises(ValueError, match=re.escape(f"got {words}; remove --kv-policy")):
        require_architecture(ModelConfig(str(tmp_path)))


def test_such_a_server_is_refused_before_sglang_asks_for_its_backends(tmp_path):
    """SGLang ends without a word of the model where a backend is named that we would ask for."""
    words, config = next(iter(KNOWN_BY_CONFIGURATION.items()))
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = refusal("--skip-tokenizer-init", "--kv-policy", "raas", model_path=tmp_path)
    assert said.splitlines()[-1].startswith("error: --kv-policy must run on models whose layers")
    assert words in said.splitlines()[-1]
