"""The study on a CPU: decoding as transformers does it, and answers that are graded."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import triton
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
)
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.accuracy.grid import make_cells
from benchmarks.accuracy.samples import SampleFile, read_samples
from benchmarks.accuracy.study import kernels
from benchmarks.accuracy.study.model import Model
from benchmarks.accuracy.study.rules import RULES, make_rule
from benchmarks.accuracy.study.run import Study
from reasoner import REASONER
from study_models import BUDGET, CONFIGS, PROMPTS, STEPS, decode


@pytest.fixture(scope="module")
def dense(model):
    return decode(model, make_rule("window"))


@pytest.mark.parametrize("name", CONFIGS)
def test_dense_is_what_transformers_generates(folder, name):
    theirs = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
    found = decode(Model(folder / name, "cpu", torch.float32), make_rule("window"))
    for prompt, tokens in zip(PROMPTS, found, strict=True):
        wanted = theirs.generate(torch.tensor([prompt]), max_new_tokens=STEPS, do_sample=False)
        assert tokens == wanted[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", RULES)
def test_a_budget_above_the_output_is_dense(model, dense, name):
    assert decode(model, make_rule(name), 96) == dense


@pytest.mark.parametrize("name", RULES)
def test_a_budget_below_the_output_is_not(model, dense, name):
    assert decode(model, make_rule(name), BUDGET) != dense


def test_answers_that_end_make_room_and_change_no_other(folder):
    model = Model(folder / "qwen2", "cpu", torch.float32)
    prompts = [[i, 63 - i, 2 * i] for i in range(24)]
    rule = make_rule("raas-gap:recency=1")
    without_end = decode(model, rule, BUDGET, prompts)
    model.ends = [torch.tensor(without_end)[:, :32].flatten().mode().values.item()]
    together = decode(model, rule, BUDGET, prompts)
    lengths = {len(tokens) for tokens in together}
    assert min(lengths) < 16 < max(lengths), "some rows must have moved"
    for tokens, whole in zip(together, without_end, strict=True):
        assert tokens == whole[: len(tokens)]
        assert len(tokens) == STEPS or tokens[-1] in model.ends


def test_the_reasoner_is_right_with_room_and_wrong_without(tmp_path):
    study = Study(Model(REASONER, "cpu", torch.float32), AutoTokenizer.from_pretrained(REASONER))
    block = {"tasks": ["uniform:60"], "budgets": [8, 160], "n": 2}
    cells = make_cells({**block, "methods": ["dense", "window", "r-kv:window=4"]}, 0)
    for _ in "ab":  # what is there already is not asked again
        file = SampleFile(tmp_path / "samples.jsonl", "none", {})
        with ThreadPoolExecutor() as pool:
            for cell in cells:
                study.collect(cell, file, pool)
        file.close()
    samples = list(read_samples(tmp_path / "samples.jsonl"))
    assert len(samples) == sum(cell.n for cell in cells)
    for sample in samples:
        evicted = max(0, sample["tokens"] - 1 - (sample["budget"] or 160))
        assert sample["evicted_tokens"] == evicted
        assert evicted or (sample["right"] and sample["finish"] == "stop")
        assert not (sample["method"] == "window" and evicted and sample["right"])


def test_a_prompt_that_leaves_no_room_is_refused(folder):
    model = Model(folder / "qwen2", "cpu", torch.float32)
    model.context = 70
    study = Study(model, AutoTokenizer.from_pretrained(REASONER))
    (cell,) = make_cells({"tasks": ["uniform:60"], "methods": ["dense"], "budgets": [], "n": 1}, 0)
    with pytest.raises(ValueError, match=r"must fit the model's context of 70 tokens"):
        study.answers(cell, [0])


FLAGS = {"STATISTICS": True, "PROMPT": True}
SIZES = {"HEADS": 2, "GROUP": 6, "D": 128, "BLOCK": 64, **FLAGS}
STRIDES = ("mean_stride", "origin_stride", "slots_stride", "prompt_stride")
COUNTS = (*STRIDES, "prompt_tokens", "budget", "count")
BRAINS = ("q", "out", "prompt_k", "prompt_v", "slots_k", "slots_v")
INDICES = ("start", "length", "step")


@pytest.mark.parametrize("name", ["attend_kernel", "expected_kernel"])
def test_a_kernel_compiles_for_hopper(name):
    assert os.environ.get("TRITON_INTERPRET") != "1", "the interpreter has no compiler"
    kernel = getattr(kernels, name)
    types = dict.fromkeys(kernel.arg_names, "*fp32")
    for kind, names in (("*bf16", BRAINS), ("*i64", INDICES), ("i32", COUNTS), ("fp32", ["scale"])):
        types |= dict.fromkeys(set(names) & types.keys(), kind)
    constants = {key: value for key, value in SIZES.items() if key in types}
    places = {(kernel.arg_names.index(key),): value for key, value in constants.items()}
    signature = types | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, signature=signature, constexprs=places)
    assert ".target sm_90" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
