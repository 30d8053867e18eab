"""What a dense run attends of tokens that a policy has given up."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import stored
from accuracy import lost_tables
from accuracy.grid import make_cells
from accuracy.lost import Books, attention_lost, write
from accuracy.retention import Retention, Rule
from plots import data_of
from reasoner.tokenizer import MODEL_DIR
from rows import RowFile

PLOTS = MODEL_DIR.parents[2] / "docs" / "plots"
PROMPT = 3


def books(rule="window", budget=8, steps=16):
    """Books of 1 layer, 1 row, 2 KV heads with 2 queries each and pages of 4 tokens."""
    settings = Rule(rule=rule, page=4, alpha=0.6)
    return Books(Retention(settings, torch.tensor([budget]), (1, 2, 4), PROMPT, steps), 2)


def attend(book, shares_of, steps=16):
    """Lets each query attend ``shares_of(step, head, query)``: shares of generated tokens.

    What is left goes to the prompt.
    """
    for step in map(torch.tensor, range(steps)):
        if step % 4 == 0:
            book.retention.begin_page(step)
        shares = torch.zeros(1, 2, 2, PROMPT + int(step) + 1)
        for head in range(2):
            for query in range(2):
                for token, share in shares_of(int(step), head, query).items():
                    shares[0, head, query, PROMPT + token] = share
        shares[..., 0] = 1 - shares.sum(-1)
        book.observe(0, torch.zeros(1, 2, 2, 4), shares, step)


def test_what_a_window_lost_is_counted_for_each_query():
    """A window of 8 loses token 0 at step 8: 8 of 16 steps."""
    used = {(0, 0): 0.25, (0, 1): 0.05, (1, 0): 0.75, (1, 1): 0.0}
    book = books()
    attend(book, lambda step, head, query: {0: used[head, query]})
    assert book.mass[0, 0].flatten().tolist() == pytest.approx([2.0, 0.4, 6.0, 0.0])
    assert book.over_tenth[0, 0].flatten().tolist() == [8, 0, 8, 0]
    assert book.over_half[0, 0].flatten().tolist() == [0, 0, 8, 0]


def test_a_token_is_lost_at_the_step_that_takes_its_place():
    book = books()
    attend(book, lambda step, head, query: {3: 1.0} if step >= 3 else {})
    assert book.mass[0, 0].flatten().tolist() == [5.0] * 4, "steps 11 to 15"


def test_a_policy_sees_what_is_left_to_it():
    """Page 1 goes at step 12. Half of what the dense run attends is all that is left then."""
    book = books("alpha", budget=12)
    attend(book, lambda step, head, query: {0: 0.7} if step < 12 else {0: 0.5, 4: 0.5})
    assert book.retention.resident[0, 0, 0].tolist() == [True, False, True, True]
    assert book.mass[0, 0].flatten().tolist() == [2.0] * 4, "token 4 at steps 12 to 15"
    assert book.retention.stamps[0, 0, 0, 0] == 15


def test_a_budget_above_the_chain_loses_nothing_and_one_below_does():
    block = {"tasks": ["milestone:150"], "budgets": ["160", "48"], "n": 1}
    cells = make_cells({**block, "methods": ["offline:rule=window", "offline:rule=h2o"]}, 0)
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
    found = attention_lost(model, AutoTokenizer.from_pretrained(MODEL_DIR), cells)
    for cell, book in zip(cells, found, strict=True):
        kept = book.retention.resident.sum(-1) * 16
        assert (book.mass > 0).any() == (cell.budget == 48)
        assert bool((kept <= cell.budget).all())


def test_the_table_has_means_over_heads_and_the_look_up_head(tmp_path, monkeypatch):
    (cell,) = make_cells(
        {"tasks": ["milestone:1200"], "methods": ["offline:rule=window"], "budgets": [16], "n": 2},
        0,
    )
    steps = cell.task.output_tokens - 1
    book = Books(Retention(Rule("window"), torch.tensor([16, 16]), (3, 2, 4), PROMPT, 16), 2)
    book.mass += steps / 4  # a quarter of each head's attention
    book.over_half[2, 0, 0, 0] = steps / 2  # one of two chains, half the time
    write(RowFile(tmp_path / "attention_lost.jsonl", 0, "c1"), cell, book)
    monkeypatch.setattr(stored, "RESULTS", tmp_path)
    assert "| `offline:rule=window` | 25.0, 2.1, 25.00 |" in lost_tables.over_budget()
    assert lost_tables.by_regime() == ""
    stored_text = (tmp_path / "attention_lost.jsonl").read_text()
    (tmp_path / "attention_lost.jsonl").write_text(stored_text.replace(":1200", ":602"))
    assert "| 602 tokens, L = 16 | milestone |" in lost_tables.by_regime()
    assert "| `offline:rule=window` | 25.00 |" in lost_tables.by_regime()


def test_the_picture_shows_the_stored_rows():
    rows = lost_tables.drawn_rows()
    assert rows, "what was measured is stored"
    assert data_of(PLOTS / f"{lost_tables.NAME}.svg") == lost_tables.data(rows)
