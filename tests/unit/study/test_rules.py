"""The rules of the study, as naive loops choose."""

import cmath
import functools
import math
import statistics

import pytest
import torch

from benchmarks.accuracy.study.decoder import Decoder, prefill
from benchmarks.accuracy.study.rules import make_rule
from raas_sglang.policies import POLICIES, raas
from study_models import BUDGET, PROMPTS, STEPS, decode


class Seen:
    """What a rule was shown of one head, step by step; ``at`` is layer, answer and KV head."""

    def __init__(self, model, method, budget=BUDGET, at=(1, 1, 1), prompts=PROMPTS):
        self.rule, self.budget, self.steps = make_rule(method), budget, []
        self.at, self.scale = at, model.scale
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
    check_naively(Seen(model, name, budget, at), name, together)


@pytest.mark.parametrize("at", [(0, 0, 0), (1, 3, 1)])
def test_the_spread_follows_queries_and_keys(model, monkeypatch, at):
    """Of the tiny model it would be at its least."""
    monkeypatch.setattr(raas, "_LEAST_SPREAD", 0.0)
    check_naively(Seen(model, "raas:least=0", at=at), "raas", 4)


def check_naively(seen, name, together):
    """Holds what a rule keeps, and raas's importance, against the naive rule of a policy."""
    budget = seen.budget
    naive = POLICIES[name].rule(budget, seen.at[::2], seen.scale, seen.prompt)
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


def test_a_shift_of_all_keys_changes_no_choice(model):
    """What all keys share shifts all logits of a query alike, so it tells no two apart."""

    def scores(method, shift):
        decoder = Decoder(model, prefill(model, PROMPTS), BUDGET, STEPS)
        rule = make_rule(method)
        decoder.run(rule)
        with torch.inference_mode():
            decoder.residents.keys += shift
            rule._key += shift  # they have been so all along
            return rule.importance(STEPS - 1, decoder.residents)

    torch.testing.assert_close(scores("raas", 0.5), scores("raas", 0), atol=1e-3, rtol=1e-3)
    origin = "raas:centred=0"
    assert not torch.allclose(scores(origin, 0.5), scores(origin, 0), atol=0.1)


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
