"""The study on given answers, on a CPU: their loss as transformers has it."""

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerBase,
)

from benchmarks.accuracy.samples import read_samples
from benchmarks.accuracy.study import forced, losses
from benchmarks.accuracy.study.decoder import prefill
from benchmarks.accuracy.study.model import Model, as_float8
from benchmarks.accuracy.study.rules import make_rule
from benchmarks.accuracy.study.teacher import Teacher
from benchmarks.accuracy.study.texts import read_texts
from benchmarks.accuracy.summary import read_rows
from reasoner import REASONER
from study_models import BUDGET, CONFIGS, PROMPTS, decode


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


def test_a_float8_cache_rounds_what_it_stores(folder, answers):
    exact, rounded = (
        teach(Model(folder / "llama", "cpu", torch.float32, is_float8), "window", 60, answers)
        for is_float8 in (False, True)
    )
    for part in ("keys", "values"):
        for teacher, is_rounded in ((exact, False), (rounded, True)):
            for held in (getattr(teacher.residents, part), getattr(teacher.prompts, part)):
                assert torch.equal(held, as_float8(held)) == is_rounded
    apart = (rounded.loss - exact.loss).abs()
    assert 0 < apart.mean() < 0.5, "the text is still the same"
    assert as_float8(torch.tensor([1.03, -460.0])).tolist() == [1.0, -448.0]


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
    monkeypatch.setattr("sys.argv", ["losses", str(out), "--out", str(sources / "rows.jsonl")])
    assert losses.main() == 0
    stored = read_rows(sources / "rows.jsonl")
    assert len(stored) == 2 * 3
    for row in stored:
        assert (row["n"], row["run"]["model"]) == (4, "reasoner")
        assert (row["method"] == "dense") == (row["more"] == 0)
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
