"""The plain-torch decoder: with room for all a rule is dense, without it keeps what it may."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from accuracy.grid import make_cells
from accuracy.offline import decode
from accuracy.retention import Retention, Rule
from naive_policy import NaiveHead
from reasoner.tokenizer import MODEL_DIR

RULES = ["select,score=bound", "select", "decay", "top-r,score=bound", "recurrence,page=4", "lrfu"]


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()


def samples(model, rule, budgets, tokens=60, n=2):
    block = {"tasks": [f"uniform:{tokens}"], "budgets": budgets, "n": n}
    cells = make_cells({**block, "methods": [f"offline:rule={rule}"]}, 0)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    return decode(model, tokenizer, [(cell, i) for cell in cells for i in range(cell.n)])


@pytest.mark.parametrize("rule", RULES)
def test_a_budget_above_the_output_is_dense(model, rule):
    found = samples(model, rule, ["160"])
    assert all(one["right"] and one["finish"] == "stop" for one in found)
    assert all(one["evicted_tokens"] == 0 for one in found)


def test_a_budget_above_prompt_and_output_is_dense_with_a_paged_prompt(model):
    tight, wide = samples(model, "top-r,score=bound,prompt=paged", ["48", "512"], n=1)
    assert wide["right"]
    assert wide["evicted_tokens"] == 0
    assert tight["resident_tokens"] == 48 < tight["logical_tokens"]
    assert not tight["right"], "it lost a part of the program"


def test_budgets_of_one_batch_are_kept_apart(model):
    small, large = samples(model, "window,page=4", ["16", "256"], tokens=150, n=1)
    assert not small["right"]
    assert large["right"]
    assert small["resident_tokens"] < large["resident_tokens"]
    assert small["evicted_tokens"] > 0


def state(steps=64, budget=16, **settings):
    """A retention of 2 layers, 1 row and 2 KV heads of size 4 behind a prompt of 3 tokens."""
    rule = Rule(**{"page": 4, **settings})
    return Retention(rule, torch.tensor([budget]), (2, 2, 4), 3, steps)


def fill(retention, use, steps=64):
    """Decodes steps in which each head gives token ``use(step)[layer][head]`` all its attention."""
    for step in map(torch.tensor, range(steps)):
        if step % retention.rule.page == 0:
            retention.begin_page(step)
        for layer, tokens in enumerate(use(int(step))):
            shares = torch.zeros(1, 2, 1, 3 + int(step) + 1)
            for head, token in enumerate(tokens):
                shares[0, head, 0, 3 + min(token, int(step))] = 1.0
            retention.observe(layer, torch.zeros(1, 2, 1, 4), shares, step)


def always(first, second):
    return lambda step: (first, second)


@pytest.mark.parametrize("rule", ["alpha", "decay", "lrfu", "recurrence", "top-r"])
def test_each_head_keeps_the_page_that_it_uses(rule):
    retention = state(rule=rule, floor=8, ratio=0.25)
    fill(retention, always([0, 5], [9, 13]))
    kept = [[set(row.nonzero()[:, 0].tolist()) for row in layer[0]] for layer in retention.resident]
    wanted = [[{0}, {1}], [{2}, {3}]]
    for layer in range(2):
        for head in range(2):
            assert len(kept[layer][head]) == 4
            assert wanted[layer][head] <= kept[layer][head]
            assert {14, 15} <= kept[layer][head], "the newest tokens stay"


@pytest.mark.parametrize("steps", [8, 10])
def test_use_that_is_noted_late_counts_the_same_once_it_is(steps):
    late, noted = (state(rule="lrfu", budget=64, late=each) for each in (4, 1))
    fill(late, always([0, 1], [2, 3]), steps)
    fill(noted, always([0, 1], [2, 3]), steps // 4 * 4)
    torch.testing.assert_close(late.stamps, noted.stamps)


def test_a_window_keeps_the_newest_pages():
    retention = state(rule="window")
    fill(retention, always([0, 0], [0, 0]))
    assert retention.resident.nonzero()[:, 3].tolist() == [12, 13, 14, 15] * 4


@pytest.mark.parametrize("tokens", [8, 10])
def test_a_paged_prompt_is_as_if_it_had_been_generated(tokens):
    keys = torch.randn(2, 1, 2, tokens, 4, generator=torch.Generator().manual_seed(0))
    settings = {"rule": "top-r", "score": "bound", "page": 4}
    prefilled, decoded = (
        Retention(Rule(**settings), torch.tensor([16]), (2, 2, 4), 0, 64) for _ in range(2)
    )
    prefilled.add_prompt(keys)
    for step in map(torch.tensor, range(tokens)):
        if step % 4 == 0:
            decoded.begin_page(step)
        for layer in range(2):
            decoded.add_key(layer, keys[layer, :, :, step], step)
    for name in ("resident", "low", "high"):
        torch.testing.assert_close(getattr(prefilled, name), getattr(decoded, name))
    assert prefilled.stamps[0, 0, 0, :4].tolist() == [0, 4, 8 if tokens > 8 else 0, 0]


def test_a_window_slides_token_by_token():
    retention = state(rule="window")
    fill(retention, always([0, 0], [0, 0]), steps=62)
    seen = retention.visible(0, torch.empty(0), torch.empty(0), torch.tensor(61))
    written = seen[0, :, :62].nonzero()[:, 1].view(2, -1)
    assert written.tolist() == [list(range(46, 62))] * 2


def test_h2o_keeps_the_heaviest_beside_the_newest_half():
    retention = state(rule="h2o")
    fill(retention, always([0, 5], [9, 13]))
    kept = retention.resident.nonzero()[:, 3].view(4, 4).tolist()
    # Where a head's token does not exist yet, the page being filled gets the attention.
    assert kept == [[0, 13, 14, 15], [0, 1, 14, 15], [1, 2, 14, 15], [2, 3, 14, 15]]


@pytest.mark.parametrize(
    ("rule", "floor"),
    [
        *(("window", 0), ("h2o", 0), ("top-r", 0), ("alpha", 0), ("decay", 0), ("lrfu", 0)),
        # The last is more than half of the budget, so that the half rules.
        *(("top-r", 12), ("decay", 12), ("lrfu", 8), ("lrfu", 24)),
    ],
)
def test_a_head_keeps_the_tokens_that_the_engine_keeps(rule, floor):
    settings = Rule(rule=rule, page=4, alpha=0.1, decay=16, floor=floor)
    retention = Retention(settings, torch.tensor([32]), (1, 1, 4), 3, 200)
    policy = rule if rule in ("window", "h2o") else "raas"
    head = NaiveHead(policy, 32, 4, settings.ratio, (0, 0), floor, by_mass=rule == "lrfu")
    random = torch.Generator().manual_seed(0)
    for step in range(200):
        head.store(step, [0.0])
        now = torch.tensor(step)
        if step % 4 == 0:
            retention.begin_page(now)
        seen = retention.visible(0, torch.empty(0), torch.empty(0), now)[0, 0, : step + 1]
        assert set(seen.nonzero()[:, 0].tolist()) == set(head.tokens.values())
        shares = torch.rand(step + 1, generator=random) ** 16 * seen
        shares = torch.cat([torch.full((3,), 0.1), shares / shares.sum() * 0.7])
        retention.observe(0, torch.empty(0), shares.view(1, 1, 1, -1), now)
        tell(head, rule, step, shares[3:].tolist())


def test_lrfu_goes_by_the_softmax_of_bounds():
    settings = Rule(rule="lrfu", score="bound", page=4, decay=16, floor=8)
    retention = Retention(settings, torch.tensor([32]), (1, 1, 4), 3, 200)
    head = NaiveHead("raas", 32, 4, settings.ratio, (0, 0), floor=8, by_mass=True)
    random = torch.Generator().manual_seed(0)
    for step in range(200):
        key, *queries = torch.randint(-3, 4, (3, 4), generator=random).float()
        now, queries = torch.tensor(step), torch.stack(queries)
        head.store(step, key.tolist())
        if step % 4 == 0:
            retention.begin_page(now)
        seen = retention.visible(0, torch.empty(0), torch.empty(0), now)[0, 0, : step + 1]
        assert set(seen.nonzero()[:, 0].tolist()) == set(head.tokens.values())
        retention.add_key(0, key[None, None], now)
        retention.observe(0, queries[None, None], torch.empty(0), now)
        bounds = {place: head.bound(place, queries.tolist()) for place in range(len(head.pages))}
        head.gather_fading(head.shares(bounds, 0.5), math.exp(-1 / 16))


def tell(head, rule, step, shares):
    """Lets the naive head see the shares of generated tokens."""
    own = [shares[page.birth : page.birth + len(page.keys)] for page in head.pages]
    scores = {place: max(of_page) for place, of_page in enumerate(own)}
    if rule == "top-r":
        head.stamp_top(step, scores)
    elif rule == "alpha":
        head.stamp_above(step, scores, 0.1)
    elif rule == "decay":
        head.stamp_decayed(step, scores, 16)
    elif rule == "lrfu":
        head.gather_fading(scores, math.exp(-1 / 16))
    elif rule == "h2o":
        for page, of_page in zip(head.pages, own, strict=True):
            page.mass += sum(of_page)


def test_random_draws_anew_for_each_head_and_eviction():
    retention = state(rule="random", steps=400, budget=32)
    fill(retention, always([0, 0], [0, 0]), steps=400)
    kept = [set(row.nonzero()[:, 0].tolist()) for row in retention.resident.flatten(0, 2)]
    assert all(len(pages) == 8 and 99 in pages for pages in kept)
    assert len({frozenset(pages) for pages in kept}) == 4
    # Of pages that must face a draw of 1 in 8 at each eviction, old ones are rare.
    assert 40 < sum(sum(pages) / 8 for pages in kept) / 4 < 99


@pytest.mark.parametrize(("pool", "kept"), [("layer", [8, 8]), ("request", [16])])
def test_a_pool_is_shared_and_never_exceeded(pool, kept):
    retention = state(rule="alpha", pool=pool)
    fill(retention, always([0, 5], [9, 13]))
    sizes = retention.resident.sum((1, 2, 3))
    assert (sizes.tolist() if pool == "layer" else [int(sizes.sum())]) == kept


@pytest.mark.parametrize(("until", "is_kept"), [(10, False), (12, True)])
def test_use_of_the_newest_tokens_does_not_count(until, is_kept):
    """Page 1 ends with token 7 and is among the newest 4 up to step 10."""
    retention = state(rule="decay", lag=4, birth=40)
    fill(retention, lambda step: [[5 if step < until else step] * 2] * 2, steps=40)
    assert bool(retention.resident[..., 1].all()) is is_kept


def test_layers_share_a_budget_by_weight():
    retention = state(rule="window", layers="1-3", budget=32)
    fill(retention, always([0, 0], [0, 0]))
    assert retention.resident.sum(-1)[:, 0].tolist() == [[4, 4], [12, 12]]


def test_a_bound_is_never_below_a_score():
    retention = state(rule="select", score="bound", budget=8)
    keys = torch.randn(1, 2, 12, 4, generator=torch.Generator().manual_seed(0))
    for step in range(12):
        if step % 4 == 0:
            retention.begin_page(torch.tensor(step))
        retention.add_key(0, keys[:, :, step], torch.tensor(step))
    q = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(1))
    bounds = retention._scores(0, q, torch.empty(0))[..., :3]
    exact = (q @ keys.transpose(2, 3)).amax(2).unflatten(-1, (3, 4)).amax(-1)
    assert (bounds >= exact - 1e-5).all()
    seen = retention.visible(0, q, torch.zeros(1, 2, 3, 15), torch.tensor(11))
    assert seen.sum(-1).tolist() == [[8, 8]]
    assert seen[..., 8:12].all(), "the page being filled is always seen"


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="rule of a rule must be one of select"):
        samples(None, "quest", ["16"])
