"""The accuracy harness without a server: grids, grading, statistics, samples that are resumed."""

import argparse
import json
import math

import pytest

from benchmarks.accuracy.ask import count_missing
from benchmarks.accuracy.dataset import INSTRUCTION, DatasetTask, boxed, grade
from benchmarks.accuracy.grid import budget_tokens, make_cells, make_task
from benchmarks.accuracy.samples import SampleFile, about_run, read_samples
from benchmarks.accuracy.server import by_server
from benchmarks.accuracy.significance import mcnemar, wilson
from benchmarks.accuracy.summary import cell_row, main, problems, read_rows
from benchmarks.report import accuracy, accuracy_plots, build, store
from benchmarks.report.drawing import data_of
from reasoner import REASONER


def block(**changes):
    chosen = {"tasks": ["milestone:150"], "methods": ["dense", "raas"], "budgets": ["64"], "n": 4}
    return {**chosen, **changes}


def test_a_grid_is_a_product_and_dense_has_no_budget():
    cells = make_cells(block(tasks=["milestone:150", "uniform:150"], budgets=["64", 128]), 0)
    assert [cell.key for cell in cells if cell.task.name == "uniform:150"] == [
        ("uniform:150", "dense", None),
        ("uniform:150", "raas", 64),
        ("uniform:150", "raas", 128),
    ]
    assert len(cells) == 6


@pytest.mark.parametrize(("tokens", "want"), [(1200, 144), (602, 64), (150, 16)])
def test_a_share_of_the_chain_is_a_budget(tokens, want):
    assert budget_tokens("1/8", make_task(f"milestone:{tokens}", 0)) == want


def test_methods_are_dealt_to_the_servers():
    cells = make_cells(block(methods=["raas", "window", "h2o"], budgets=[64, 128]), 0)
    assert [len(group) for group in by_server(cells, 1)] == [6]
    groups = by_server(cells, 2)
    assert [{cell.method for cell in group} for group in groups] == [{"raas", "h2o"}, {"window"}]
    assert len(by_server(cells, 9)) == 3


@pytest.mark.parametrize("text", ["milestone", "gsm7k", "raas:1200", "gsm8k*x"])
def test_an_unknown_task_is_refused(text):
    with pytest.raises(ValueError, match="task must be"):
        make_task(text, 0)


def test_the_chain_counts_and_not_the_answer_alone():
    task = make_task("milestone:150", 7)
    chain = task.problem(0).chain
    words = chain.split()
    words[7] = "+" if words[7] == "-" else "-"
    assert task.verdict(0, chain)[:4] == (True, True, True, None)
    assert task.verdict(0, " ".join(words))[:4] == (False, True, True, 0)
    assert task.verdict(0, " ".join(words[:26]))[:4] == (False, False, False, 0)


@pytest.mark.parametrize(
    ("text", "answer", "want"),
    [
        ("so it is \\boxed{72}", "72", (True, True)),
        ("\\boxed{\\frac{1}{2}}", "0.5", (True, True)),
        ("\\boxed{7}", "72", (True, False)),
        ("I do not know", "72", (False, False)),
    ],
)
def test_answers_are_graded_as_mathematics(text, answer, want):
    assert grade(text, answer) == want


def test_a_data_set_is_read_whatever_its_fields_are_called(tmp_path):
    path = tmp_path / "lines.jsonl"
    rows = [
        {"question": "How many?", "answer": "12 * 6 = 72\n#### 72"},
        {"Problem": "What?", "Answer": 204},
        {"prompt": "solve", "answer": "5"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    task = make_task(f"gsm8k:{path}", 0)
    assert isinstance(task, DatasetTask)
    assert task.answers == [["72"], ["204"], ["5"]]
    assert task.prompt(0) == task.prompt(3) == f"How many?\n{INSTRUCTION}"
    assert task.prompt(2) == "solve"
    assert task.verdict(3, "\\boxed{72}").right
    with pytest.raises(ValueError, match="not known beforehand"):
        budget_tokens("1/8", task)


def test_a_file_goes_on_with_its_own_settings_alone(tmp_path):
    path, key = tmp_path / "samples.jsonl", ("milestone:150", "raas", 64)
    first = SampleFile(path, "none", {"model": "a", "max_tokens": 2048})
    first.write(sample(0))
    first.close()
    for about, words in (
        ({"model": "b", "max_tokens": 2048}, "model b after a"),
        ({"model": "a", "max_tokens": 64}, "max_tokens 64 after 2048"),
    ):
        other = SampleFile(path, "none", about)
        with pytest.raises(ValueError, match=words):
            other.missing(key, range(2))
        assert other.missing(("another", "raas", 64), range(2)) == [0, 1]
        other.close()
    assert SampleFile(path, "none", {"model": "a"}).missing(key, range(2)) == [1]


def test_what_is_asked_for_twice_is_refused(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(json.dumps({"question": "?", "answer": "1"}) for _ in range(3)))
    block = {"tasks": [f"gsm8k:{path}"], "methods": ["raas"], "budgets": ["64"], "n": 3}
    greedy = {"sampling": {"temperature": 0}}
    assert len(make_cells({**block, **greedy}, 0)) == 1
    with pytest.raises(ValueError, match="must be asked for once"):
        make_cells({**block, "tasks": block["tasks"] * 2}, 0)
    with pytest.raises(ValueError, match="at most the 3 messages of gsm8k with --greedy, got 4"):
        make_cells({**block, **greedy, "n": 4}, 0)
    assert make_cells({**block, "n": 4}, 0)[0].n == 4, "sampled, the answers differ"


def test_a_box_may_hold_braces_in_braces():
    text = "so \\boxed{\\frac{\\sqrt{3}}{\\sqrt{2}}} and \\boxed{9}, not \\boxed{"
    assert boxed(text) == ["\\frac{\\sqrt{3}}{\\sqrt{2}}", "9"]
    assert boxed("\\boxed{\\left\\{1,2\\right.} \\boxed{1+\\boxed{2}}") == [
        "\\left\\{1,2\\right.",
        "1+\\boxed{2}",
    ]


def test_several_questions_in_one_message_are_graded_one_by_one(tmp_path):
    path = tmp_path / "lines.jsonl"
    rows = [{"question": f"Question {i}?", "answer": str(i)} for i in range(5)]
    path.write_text("\n".join(map(json.dumps, rows)))
    task = make_task(f"gsm8k*2:{path}", 0, {"temperature": 0})
    assert (task.name, task.sampling, len(task.prompts)) == ("gsm8k*2", {"temperature": 0}, 2)
    assert task.prompt(1).endswith("Problem 1: Question 2?\n\nProblem 2: Question 3?")
    verdicts = [task.verdict(1, text) for text in ("\\boxed{2} \\boxed{9}", "\\boxed{2}", "2, 3")]
    assert [verdict.rights for verdict in verdicts] == [(True, False), (True, False), (False,) * 2]
    assert [verdict.answered for verdict in verdicts] == [True, False, False]
    found = {i: sample(i) | {"rights": list(v.rights)} for i, v in enumerate(verdicts)}
    row = cell_row(("gsm8k*2", "raas", 64), found)
    assert (row["n"], row["right"]) == (6, 2)
    assert problems(row, "solved") == {0, 2}


def test_a_row_without_an_answer_is_refused(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text(json.dumps({"question": "How many?"}))
    with pytest.raises(ValueError, match="got the fields question"):
        make_task(f"aime24:{path}", 0)


def sample(index, right=True, method="raas", budget=64, task="milestone:150"):
    return {
        **{"task": task, "method": method, "budget": budget, "index": index, "right": right},
        **{"answer_right": right, "answered": True, "first_wrong_line": None, "tokens": 147},
        **{"finish": "stop", "logical_tokens": 228, "resident_tokens": 145, "evicted_tokens": 83},
        **{"prompt": "program v1 = v0", "text": "v1 = v0"},
    }


def test_a_run_goes_on_where_it_was_cut_off(tmp_path):
    path = tmp_path / "samples.jsonl"
    cells = make_cells(block(), 0)
    first = SampleFile(path, "all", {"commit": "c1"})
    assert count_missing(cells, first) == 8
    for index in (0, 2):
        first.write(sample(index))
    first.close()
    with path.open("a") as file:
        file.write(json.dumps(sample(1))[:40])  # cut off in the middle of a line
    second = SampleFile(path, "all", {"commit": "c2"})
    assert second.done["milestone:150", "raas", 64] == {0, 2}
    assert count_missing(cells, second) == 6
    second.write(sample(1))
    second.close()
    assert [one["index"] for one in read_samples(path)] == [0, 2, 1]


def test_a_compressed_file_cannot_be_appended_to(tmp_path):
    with pytest.raises(ValueError, match=r"plain JSON lines, got .*samples\.jsonl\.gz"):
        SampleFile(tmp_path / "samples.jsonl.gz", "all", {})


@pytest.mark.parametrize(("texts", "kept"), [("all", [0, 1]), ("wrong", [1]), ("none", [])])
def test_texts_are_kept_as_asked(tmp_path, texts, kept):
    file = SampleFile(tmp_path / "samples.jsonl", texts, {})
    file.write(sample(0))
    file.write(sample(1, right=False))
    file.close()
    found = list(read_samples(tmp_path / "samples.jsonl"))
    for name in ("prompt", "text"):
        assert [one["index"] for one in found if name in one] == kept


def test_wilson_has_the_textbook_interval():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 200) == pytest.approx((0.0, 0.0188), abs=1e-4)


def test_mcnemar_looks_at_what_only_one_has_solved():
    first = [True] * 9 + [False] + [True] * 50 + [False] * 20
    second = [False] * 9 + [True] + [True] * 50 + [False] * 20
    want = 2 * sum(math.comb(10, k) for k in (0, 1)) / 2**10
    assert mcnemar(first, second) == (9, 1, pytest.approx(want))
    assert mcnemar(second, first)[2] == pytest.approx(want)
    assert mcnemar(first, first) == (0, 0, 1.0)


def test_problems_of_one_message_count_as_one():
    """Ten messages of four, all of which only the first method solved: 40 problems, 10 answers."""
    first, second = [True] * 40, [False] * 40
    assert mcnemar(first, second, each=4) == (40, 0, pytest.approx(2 / 2**10))
    assert mcnemar(first, second)[2] == pytest.approx(2 / 2**40)
    # Differences of 3, 1 and -1, in sum 3: of eight ways to give signs, six come as far.
    first = [True, True, True, False, True, False, False, False, False, False, False, False]
    second = [False] * 8 + [True, False, False, False]
    assert mcnemar(first, second, each=4) == (4, 1, pytest.approx(6 / 8))


def write_samples(path):
    file = SampleFile(path, "none", {"commit": "c1", "model": "reasoner"})
    for index in range(40):
        file.write(sample(index, method="dense", budget=None))
        for method, budget, right in (
            ("raas", 64, index % 2 == 0),
            ("raas", 128, index != 3),
            ("window", 64, index % 4 == 0),
            ("window", 128, index != 3),
        ):
            file.write(sample(index, right, method, budget))
    file.close()


def summed_up(tmp_path, monkeypatch):
    """The rows of the samples in a folder."""
    paths = [str(tmp_path / name) for name in ("samples.jsonl", "rows.jsonl")]
    monkeypatch.setattr("sys.argv", ["summary", paths[0], "--out", paths[1]])
    assert main() == 0
    return read_rows(tmp_path / "rows.jsonl")


@pytest.fixture
def rows(tmp_path, monkeypatch):
    write_samples(tmp_path / "samples.jsonl")
    return summed_up(tmp_path, monkeypatch)


def test_each_row_has_the_run_that_made_it(tmp_path, monkeypatch):
    """Another command, of another commit, may have appended to the file."""
    for commit, methods in (("c1", ("window", "raas")), ("c2", ("raas", "h2o"))):
        file = SampleFile(tmp_path / "samples.jsonl", "none", {"commit": commit})
        for index, method in enumerate(methods):
            file.write(sample(index, method=method))
        file.close()
    found = {row["method"]: row["run"]["commit"] for row in summed_up(tmp_path, monkeypatch)}
    assert found == {"window": "c1", "raas": "c2", "h2o": "c2"}


def test_rows_say_which_problems_were_solved(rows):
    assert len(rows) == 5
    row = next(row for row in rows if (row["method"], row["budget"]) == ("raas", 64))
    assert (row["n"], row["right"], row["run"]["commit"]) == (40, 20, "c1")
    assert problems(row, "solved") == set(range(0, 40, 2))
    assert problems(row, "asked") == set(range(40))


def test_problems_that_were_not_asked_are_not_failures():
    few = cell_row(("t", "raas", 64), {index: sample(index) for index in (1, 5)})
    assert (few["n"], few["right"]) == (2, 2)
    assert problems(few, "asked") == problems(few, "solved") == {1, 5}
    all_wrong = cell_row(("t", "window", 64), {i: sample(i, right=False) for i in range(6)})
    assert accuracy.compare(few, all_wrong) == (2, 0, 0.5)


def test_tables_mark_what_differs_from_dense(rows):
    text = accuracy.over_budget(rows)
    assert "| `raas` | 50.0*↑ | 97.5 |" in text
    assert "| `dense` |  | 100.0 |" in text
    assert "n = 40; 147 tokens a dense answer." in text


def cell(method, budget, right):
    found = {index: sample(index, index < right, task="gsm8k") for index in range(40)}
    return {**cell_row(("gsm8k", method, budget), found), "run": {"model": "m"}}


def test_an_arrow_marks_what_differs_from_the_best_control(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "RESULTS", tmp_path)
    chosen = [
        *(cell("dense", None, 40), cell("raas", 64, 30), cell("raas", 128, 20)),
        *(cell("window", 64, 2), cell("h2o", 64, 10), cell("raas-paper", 128, 39)),
    ]
    (tmp_path / "accuracy.jsonl").write_text(
        "\n".join(json.dumps(x) for row in chosen for x in ({"run": row.pop("run")}, row))
    )
    text = accuracy.real()
    assert "| m, gsm8k: right, %, budget | 64 | 128 |" in text
    assert "| `raas` | 75.0*↑ | 50.0*↓ |" in text
    assert "| `h2o` | 25.0* |  |" in text


def test_the_picture_of_the_documents_shows_the_stored_rows():
    drawn = build.ROOT / build.plot_path("accuracy-real")
    assert data_of(drawn) == accuracy_plots.accuracy().data()


def test_equal_rows_draw_equal_pictures(rows, tmp_path):
    paths = [tmp_path / folder / "accuracy-150.svg" for folder in ("first", "second")]
    for path in paths:
        accuracy_plots.AccuracyPlot(rows).draw(path)
    pictures = [path.read_text() for path in paths]
    assert pictures[0] == pictures[1]
    assert "milestone:150" in pictures[0]


@pytest.mark.parametrize(
    ("flags", "model"),
    [
        ("", "reasoner"),
        ("--kv-cache-dtype auto --tp-size 2", "reasoner"),
        ("--kv-cache-dtype fp8_e4m3", "reasoner, fp8_e4m3 KV cache"),
    ],
)
def test_answers_over_a_quantised_cache_are_told_apart(flags, model):
    args = argparse.Namespace(server_flags=flags, commit="c", first_seed=0, model_path=REASONER)
    assert about_run(args)["model"] == model


@pytest.mark.parametrize(
    ("dtype", "model"), [("auto", "reasoner"), ("fp8_e4m3", "reasoner, fp8_e4m3 KV cache")]
)
def test_the_study_tells_them_apart_in_the_same_way(dtype, model):
    args = argparse.Namespace(kv_cache_dtype=dtype, commit="c", model_path=REASONER)
    assert about_run(args)["model"] == model
