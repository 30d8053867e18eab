"""The accuracy harness without a server: grids, grading, statistics, samples that are resumed."""

import json
import math

import pytest

import stored
from accuracy import comparison, engine_tables, offline_tables, plot, tables
from accuracy.ask import count_missing
from accuracy.dataset import INSTRUCTION, DatasetTask, grade
from accuracy.grid import Cell, Method, budget_tokens, make_cells, read_grid
from accuracy.samples import WRONG, SampleFile, read_samples
from accuracy.server import by_server
from accuracy.significance import mcnemar, wilson
from accuracy.summary import cell_row, main, problems, read_rows
from accuracy.task import make_task
from local_server import REASONER
from plots import data_of

PLOTS = REASONER.parents[2] / "docs" / "plots"
GRIDS = REASONER.parents[1] / "accuracy" / "grids"
EXACT = "raas:eviction-page-size=16,score=exact,stamp-rule=decay"


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


@pytest.mark.parametrize(
    ("tokens", "page", "want"), [(1200, 16, 144), (1200, 64, 128), (1200, 1, 144), (602, 16, 64)]
)
def test_a_share_of_the_chain_is_whole_pages(tokens, page, want):
    assert budget_tokens("1/8", make_task(f"milestone:{tokens}", 0), page) == want


def test_servers_are_shared_by_equal_settings_in_any_order():
    other = "raas:stamp-rule=decay,eviction-page-size=16,score=exact"
    methods = ["raas", "window", other, "h2o:eviction-page-size=16,score=exact", EXACT]
    cells = make_cells(block(methods=methods), 0)
    groups = by_server(cells, "settings")
    assert [[cell.method.policy for cell in group] for group in groups] == [
        ["raas", "window"],
        ["raas", "raas"],
        ["h2o"],
    ]
    assert len(by_server(cells, "method")) == 4
    assert Method.of("raas:eviction-page-size=4").page_size == 4


@pytest.mark.parametrize("path", sorted(GRIDS.glob("*.json")), ids=lambda path: path.stem)
def test_the_grids_of_the_repository_can_be_read(path):
    cells = read_grid(path, 0)
    keys = {cell.key for cell in cells}
    assert len(keys) == len(cells) > 50, "no cell is asked twice"
    assert all((cell.budget or 64) % cell.method.page_size == 0 for cell in cells)


@pytest.mark.parametrize("text", ["milestone", "gsm7k", "raas:1200"])
def test_an_unknown_task_is_refused(text):
    with pytest.raises(ValueError, match="task must be"):
        make_task(text, 0)


def test_the_chain_counts_and_not_the_answer_alone():
    task = make_task("milestone:150", 7)
    chain = task.problem(0).chain
    words = chain.split()
    words[7] = "+" if words[7] == "-" else "-"
    assert task.verdict(0, chain) == (True, True, True, None)
    assert task.verdict(0, " ".join(words)) == (False, True, True, 0)
    assert task.verdict(0, " ".join(words[:26])) == (False, False, False, 0)


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
    assert task.answers == ["72", "204", "5"]
    assert task.prompt(0) == task.prompt(3) == f"How many?\n{INSTRUCTION}"
    assert task.prompt(2) == "solve"
    assert task.verdict(3, "\\boxed{72}").right
    with pytest.raises(ValueError, match="not known beforehand"):
        budget_tokens("1/8", task, 16)


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


def write_samples(path):
    file = SampleFile(path, "none", {"commit": "c1"})
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


@pytest.fixture
def rows(tmp_path, monkeypatch):
    write_samples(tmp_path / "samples.jsonl")
    paths = [str(tmp_path / name) for name in ("samples.jsonl", "rows.jsonl")]
    monkeypatch.setattr("sys.argv", ["summary", paths[0], "--out", paths[1]])
    assert main() == 0
    return read_rows(tmp_path / "rows.jsonl")


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
    assert comparison.compare(few, all_wrong) == (2, 0, 0.5)


def test_how_a_chain_ends_is_not_known_where_it_was_not_asked_to_its_end():
    found = {0: sample(0), 1: sample(1, right=False) | {"finish": WRONG}}
    row = cell_row(("milestone:150", "raas", 64), found)
    assert (row["n"], row["right"]) == (2, 1)
    assert row["unanswered"] is row["unfinished"] is row["tokens_mean"] is None
    whole = cell_row(("milestone:150", "raas", 64), {0: sample(0)})
    assert whole["unanswered"] == 0
    assert whole["tokens_mean"] > 0


def test_tables_mark_what_differs_from_dense(rows):
    text = comparison.over_budget(rows)
    assert "| `raas` | 50.0* (35 to 65) | 97.5 (87 to 100) |" in text
    assert "| `dense` |  | 100.0 (91 to 100) |" in text


def cell(task, method, budget, right, gpu="NVIDIA H200"):
    found = {index: sample(index, index < right) for index in range(40)}
    return {**cell_row((task, method, budget), found), "run": {"gpu": gpu}}


PAGES_OF_4 = "raas:eviction-page-size=4"


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """Rows of an engine at 1,200 tokens, and of a CPU, which the engine's tables leave out."""
    monkeypatch.setattr(stored, "RESULTS", tmp_path)
    chosen = [
        *(cell("milestone:1200", "dense", None, 40), cell("silent:1200", "dense", None, 40)),
        *(cell("silent:1200", "raas", 288, 1), cell("milestone:1200", "raas", 144, 30)),
        *(cell("milestone:1200", "raas", 288, 20), cell("milestone:1200", "window", 144, 2)),
        *(cell("milestone:1200", "window", 288, 21), cell("milestone:1200", "random", 288, 0)),
        *(cell("silent:1200", "h2o:score=exact", 288, 12), cell("silent:1200", EXACT, 512, 40)),
        cell("milestone:1200", PAGES_OF_4 + ",score=exact,stamp-rule=alpha", 288, 39),
        cell("milestone:1200", PAGES_OF_4, 288, 40, gpu=None),
    ]
    (tmp_path / "accuracy.jsonl").write_text(as_lines(chosen))


def as_lines(rows):
    """Rows as they are stored, each after its run."""
    lines = (json.dumps(line) for row in rows for line in ({"run": row.pop("run")}, row))
    return "\n".join(lines)


def test_shares_of_the_chain_are_compared_with_the_best_control(engine):
    text = engine_tables.at_shares()
    assert "| 1,200 tokens, L = 144 / 288 | milestone | silent |" in text
    assert "| `dense` | 100 | 100 |" in text
    assert "| `raas` | 75↑ / 50 | – / 2.5↓ |" in text
    assert "| `window` | 5 / 52.5 |  |" in text
    assert PAGES_OF_4 not in text, "neither a CPU's rows nor the variants"


def test_the_overview_puts_raas_beside_the_paper_and_the_best_control(engine):
    text = engine_tables.overview()
    assert "| 1,200, 1/8: L = 144 | 75↑ / – / 5 | – | – | – | – |" in text
    assert "| 1,200, 1/4: L = 288 | 50 / – / 52.5 | – | 2.5↓ / – / 30 | – | – |" in text


def test_fresh_problems_stand_apart(engine, tmp_path):
    assert engine_tables.on_fresh_problems() == engine_tables.NOTHING
    rows = (cell("silent:1200", "raas", 288, 30), cell("silent:1200", "window", 288, 3))
    (tmp_path / "accuracy_fresh.jsonl").write_text(as_lines(rows))
    text = engine_tables.on_fresh_problems()
    assert "| 1,200, 1/4: L = 288 | – | – | 75↑ / 7.5 | – | – |" in text


def test_variants_stand_beside_the_rules_and_the_controls(engine):
    text = engine_tables.variants()
    assert "| 1,200 tokens, L = 144 / 288 / 512 | milestone |" in text
    assert f"| `{PAGES_OF_4},score=exact,stamp-rule=alpha` | – / 97.5↑ / – |" in text
    assert "silent" not in text, "no variant was asked it"


def test_where_a_rule_is_told_below_its_controls_is_said(engine):
    text = engine_tables.told_below()
    assert "| `raas` | 1 / 1 / 3 |  |  | 1,200: 288 |  |  |" in text
    assert EXACT not in text, "it has no control"


def test_endings_say_lengths_and_what_has_no_answer(engine):
    assert "| `raas` | 147 (0) | 147 (0) |" in engine_tables.endings()


def test_looks_of_a_cpu_are_compared_with_its_own_controls():
    text = offline_tables.by_regime(
        [
            cell(f"{regime}:150", f"offline:rule={method}", 64, right, gpu=None)
            for regime, method, right in (
                *(("milestone", "decay", 30), ("uniform", "decay", 2)),
                *(("milestone", "window", 20), ("uniform", "window", 1)),
                *(("milestone", "random", 1), ("uniform", "random", 12)),
            )
        ]
    )
    assert "| 150 tokens, L = 64 | milestone | uniform |" in text
    assert "| `offline:rule=decay` | 75↑ (60 to 86) | 5↓ (1 to 16) |" in text
    assert "| `offline:rule=random` | 2 (0 to 13) | 30 (18 to 45) |" in text


def test_without_rows_a_table_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "RESULTS", tmp_path)
    assert {make() for make in tables.TABLES.values()} == {tables.NOTHING}


def test_the_pictures_of_the_documents_show_the_stored_rows():
    drawn = {path.stem for path in PLOTS.glob("accuracy-*.svg")}
    wanted = plot.pictures(engine_tables.engine_rows())
    assert drawn == set(wanted)
    for name, rows in wanted.items():
        assert data_of(PLOTS / f"{name}.svg") == plot.data(rows)


def test_equal_rows_draw_equal_pictures(rows, tmp_path):
    for folder in ("first", "second"):
        plot.draw(rows, tmp_path / folder / "accuracy-150.svg")
    pictures = [(tmp_path / name / "accuracy-150.svg").read_text() for name in ("first", "second")]
    assert pictures[0] == pictures[1]
    assert "milestone:150" in pictures[0]


def test_a_method_is_a_policy_and_settings():
    with pytest.raises(ValueError, match="POLICY:NAME=VALUE"):
        _ = Method.of("raas:exact").settings
    assert Cell(make_task("uniform:150", 0), Method.of(EXACT), 64, 1).method.policy == "raas"
