"""The study on a CPU: decoding as transformers does it, and rules as naive loops choose."""

import cmath
import functools
import json
import math
import os
import statistics
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import triton
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen3Config,
)
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.accuracy.grid import make_cells
from benchmarks.accuracy.samples import SampleFile, read_samples
from benchmarks.accuracy.study import forced, kernels
from benchmarks.accuracy.study.decoder import Decoder, prefill
from benchmarks.accuracy.study.model import Model
from benchmarks.accuracy.study.rules import RULES, make_rule
from benchmarks.accuracy.study.run import Study
from benchmarks.accuracy.study.teacher import Teacher
from benchmarks.accuracy.study.texts import read_texts
from raas_sglang.policies import POLICIES
from reasoner import REASONER

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    for name, config in CONFIGS.items():
        torch.manual_seed(4)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():  # a fresh model has no bias, and norms of one
            if parameter.dim() == 1:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        model.save_pretrained(path / name)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return Model(folder / "qwen2", "cpu", torch.float32)


def decode(model, rule, budget=STEPS, prompts=PROMPTS):
    return Decoder(model, prefill(model, prompts), budget, STEPS).run(rule)


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


class Seen:
    """What a rule was shown of one head, step by step; ``at`` is layer, answer and KV head."""

    def __init__(self, model, method, budget=BUDGET, at=(1, 1, 1), prompts=PROMPTS):
        self.rule, self.budget, self.steps = make_rule(method), budget, []
        observe = self.rule.observe

        def record(step, residents):
            born = residents.birth[at].int().tolist()
            place = int(residents.slot[at])
            layer, row, head = at
            start, length = int(residents.start[row]), int(residents.length[row])
            largest = residents.statistics and residents.statistics.largest[at].tolist()
            self.prompt = residents.prompts.keys[layer, head, start : start + length].tolist()
            self.steps.append(
                {
                    "kept": {token for token in born if token >= 0},
                    "key": residents.keys[at][place].tolist(),
                    "value": residents.values[at][place].tolist(),
                    "queries": residents.queries[at].tolist(),
                    "largest": dict(zip(born, largest, strict=True)) if largest else {},
                }
            )
            observe(step, residents)
            if name == "raas" and step + 1 >= budget:
                importance = self.rule.importance(step, residents)[at].tolist()
                self.steps[-1]["worth"] = dict(zip(born, importance, strict=True))

        name = method.partition(":")[0]
        self.rule.observe = record
        decode(model, self.rule, budget, prompts)

    def check(self, importance, every=1, floor=0.5):
        """Holds what is kept against a loop; ``importance`` takes the step and a token."""
        kept, leaving = set(), []
        for step, found in enumerate(self.steps):
            kept.add(step)
            if step >= self.budget:
                kept.remove(leaving.pop(0))
            assert found["kept"] == kept, step
            if (step + 1) % every == 0 and step + 1 >= self.budget:
                old = [token for token in kept if step - token >= int(floor * self.budget)]
                leaving = sorted(old, key=lambda token: (importance(step, token), token))[:every]
        assert step == STEPS - 2


@pytest.mark.parametrize("at", [(0, 0, 0), (0, 1, 1), (1, 2, 0), (1, 3, 1)])
@pytest.mark.parametrize(
    ("name", "budget", "together"),
    [("window", 16, 1), ("h2o", 16, 1), ("raas", 16, 4), ("raas-paper", 48, 1)],
)
def test_the_engines_policies_keep_what_their_naive_rules_keep(model, name, budget, together, at):
    seen = Seen(model, name, budget, at)
    naive = POLICIES[name].rule(budget, at[::2], model.scale, seen.prompt)
    for step, found in enumerate(seen.steps):
        naive.store(step, found["key"], found["value"])
        assert {token.birth for token in naive.tokens.values()} == found["kept"], step
        naive.attend(step, found["queries"])
        if choices := naive.choices(step):
            naive.adopt([place for _, place in choices[:together]])
        if "worth" in found:  # ages are counted from another step on
            worth = {naive.tokens[at].birth: x for at, x in naive.importance(step).items()}
            least = min(worth, key=worth.get)
            wanted = {token: x - worth[least] for token, x in worth.items()}
            shown = {token: x - found["worth"][least] for token, x in found["worth"].items()}
            assert shown == pytest.approx(wanted, abs=1e-3)
    assert len(found["kept"]) == budget < STEPS - 1


@pytest.mark.parametrize("at", [(0, 0, 0), (0, 1, 1), (1, 2, 0), (1, 3, 1)])
@pytest.mark.parametrize("threshold", [0.02, 0.1])
def test_gap_keeps_what_comes_back(model, threshold, at):
    seen = Seen(model, f"gap:threshold={threshold}", at=at)

    def importance(step, token):
        last, longest = token, 0
        for at in range(token, step + 1):
            if seen.steps[at]["largest"][token] > threshold:
                last, longest = at, max(longest, at - last)
        return -(step - last) / (longest + 1)

    seen.check(importance)


@pytest.mark.parametrize("at", [(0, 0, 0), (1, 0, 1)])
def test_tri_attention_follows_the_distance(model, at):
    """Of one answer alone, whose queries are then all that the rule has seen."""
    seen = Seen(model, "tri-attention:furthest=8", at=at, prompts=PROMPTS[1:2])
    frequencies = model.rotary.inv_freq.tolist()

    def pairs(vector, position):
        """Rotary pairs as complex numbers, turned back."""
        half = len(frequencies)
        return [
            complex(vector[i], vector[i + half]) * cmath.exp(-1j * position * frequencies[i])
            for i in range(half)
        ]

    def wanted(step, head, token):
        length = len(PROMPTS[1])
        queries = [
            pairs(found["queries"][head], length + at)
            for at, found in enumerate(seen.steps[: step + 1])
        ]
        total = 0.0
        for i, key in enumerate(pairs(seen.steps[token]["key"], length + token)):
            of_pair = [query[i] for query in queries]
            mean = sum(of_pair) / len(of_pair)
            for further in (1, 2, 4, 8):
                turn = cmath.exp(1j * frequencies[i] * (step - token + further))
                total += (mean * key.conjugate() * turn).real / 4
            total += (sum(map(abs, of_pair)) / len(of_pair) - abs(mean)) * abs(key)
        return total

    @functools.cache
    def scores(step):
        found = {}
        for head in range(len(seen.steps[0]["queries"])):
            of_head = {token: wanted(step, head, token) for token in seen.steps[step]["kept"]}
            mean, deviation = (
                statistics.fmean(of_head.values()),
                statistics.pstdev(of_head.values()),
            )
            for token, score in of_head.items():
                found[token] = max(found.get(token, -math.inf), (score - mean) / deviation)
        return found

    seen.check(lambda step, token: scores(step)[token], every=4)


def test_what_a_rule_cannot_do_is_said(model):
    with pytest.raises(ValueError, match=r"must be dense or one of raas, .*got 'newest'"):
        make_rule("newest")
    with pytest.raises(ValueError, match=r"of window must be among every, floor, got spread"):
        make_rule("window:spread=2")
    with pytest.raises(ValueError, match=r"multiple of every = 6, got 80"):
        decode(model, make_rule("h2o:every=6"))


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


def teach(model, rule, budget, answers):
    teacher = Teacher(model, prefill(model, PROMPTS), budget, answers)
    teacher.decode(make_rule(rule))
    return teacher


@pytest.fixture(scope="module")
def answers():
    draw = torch.Generator().manual_seed(3)
    return [torch.randint(64, (n,), generator=draw).tolist() for n in (60, 37, 1, 50)]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_dense_teacher_has_the_loss_of_transformers(folder, name, answers):
    theirs = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
    found = teach(Model(folder / name, "cpu", torch.float32), "window", 60, answers)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
        logits = theirs(torch.tensor([prompt + answer])).logits[0, len(prompt) : -1].detach()
        wanted = torch.nn.functional.cross_entropy(
            logits, torch.tensor(answer[1:], dtype=torch.long), reduction="none"
        )
        assert torch.equal(found.output[row, 1 : len(answer)], logits.argmax(-1))
        torch.testing.assert_close(found.loss[row, 1 : len(answer)], wanted, atol=1e-4, rtol=1e-4)


def test_a_teacher_of_greedy_answers_agrees_with_their_decoder(model):
    for method in ("raas", "h2o"):
        answers = decode(model, make_rule(method), BUDGET)
        assert teach(model, method, BUDGET, answers).output.tolist() == answers


def test_a_rule_has_a_loss_of_its_own_once_it_gives_up_tokens(model, answers):
    dense = teach(model, "window", 60, answers)
    raas = teach(model, "raas", BUDGET, answers)
    for row, answer in enumerate(answers):
        is_apart = (raas.loss - dense.loss)[row, : len(answer)].abs() > 1e-5
        assert not is_apart[: BUDGET + 1].any()
        assert is_apart[BUDGET + 1 :].float().mean() > 0.5 or len(answer) <= BUDGET


@pytest.fixture
def sources(tmp_path):
    """A file of a data set, and one of samples."""
    steps = "She sells 16 - 3 = <<16-3=13>>13 eggs.\n"
    worked = [
        {"question": f"How many are {i}?", "answer": steps * (9 + i) + "#### 13"} for i in range(6)
    ]
    kept = [
        {"task": "gsm8k", "method": method, "budget": None, "index": 4, "prompt": "How many?"}
        | {"text": f"{method} {steps * 9}"}
        for method in ("window", "dense")
    ]
    for name, rows in (("gsm8k", worked), ("samples", [{"run": {}}, *kept])):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    return tmp_path


def test_texts_are_worked_solutions_or_dense_samples(sources):
    name, texts = read_texts(f"gsm8k*2:{sources}/gsm8k.jsonl")
    assert (name, [text.index for text in texts]) == ("gsm8k*2", [0, 1, 2])
    assert "How many are 3?" in texts[1].message
    assert "<<" not in texts[1].answer
    assert texts[1].answer.count("The answer is 13") == 2
    assert texts[1].answer.count("She sells 16 - 3 = 13 eggs.") == 11 + 12
    _, (text,) = read_texts(f"gsm8k:{sources}/samples.jsonl")
    assert (text.index, text.message) == (4, "How many?")
    assert text.answer.startswith("dense She sells")
    with pytest.raises(ValueError, match=r"must have texts of math500, or dense samples of it"):
        read_texts(f"math500:{sources}/samples.jsonl")
    with pytest.raises(ValueError, match=r"must be NAME:FILE with a file that exists"):
        read_texts("gsm8k")


def test_the_loss_of_given_answers_is_stored_and_summed_up(sources, monkeypatch, capsys):
    out = sources / "forced.jsonl"
    flags = ["--model-path", str(REASONER), "--device", "cpu", "--dtype", "float32"]
    flags += ["--texts", f"gsm8k:{sources}/gsm8k.jsonl", "--methods", "window", "raas"]
    flags += ["--budgets", "16", "32", "--n", "4", "--max-tokens", "64", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["forced", *flags])
    monkeypatch.setattr(PreTrainedTokenizerBase, "apply_chat_template", lambda *_, **__: "ask : ")
    for _ in "ab":  # what is there already is not measured again
        assert forced.main() == 0
    samples = list(read_samples(out))
    assert len(samples) == 4 * 2 * 3
    for one in samples:
        assert one["tokens"] == 64 - 1 - one["budget"]
        assert (one["method"] == "dense") <= (one["same"] == one["tokens"])
        assert one["loss"] > 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| gsm8k")]
    assert len(rows) == 2 * 2 * 3
    assert "| gsm8k, 16 | dense | 4 | 188 |" in rows[0]
    assert "+0.0000 ± 0.0000" in rows[0]
    monkeypatch.setattr("sys.argv", ["forced", *flags, "--budgets", "96"])
    with pytest.raises(ValueError, match=r"must have 144 tokens for a budget of 96, got at most"):
        forced.main()


FLAGS = {"STATISTICS": True, "PROMPT": True}
SIZES = {"HEADS": 2, "GROUP": 6, "D": 128, "BLOCK": 64, **FLAGS}
COUNTS = ("prompt_tokens", "budget", "mean_stride", "slots_stride", "prompt_stride", "count")
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
