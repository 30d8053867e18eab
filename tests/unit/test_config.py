"""Flags and keyword arguments of the server: defaults, and what is refused with which words."""

import argparse
import math

import pytest

from raas_sglang.config import RaasConfig, add_flags, take_settings


def parse(*argv):
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return vars(parser.parse_args(argv))


def test_without_the_policy_flag_the_plugin_is_off():
    assert take_settings(parse()) is None


def test_the_defaults():
    config = take_settings(parse("--kv-policy", "raas"))
    assert (config.kv_budget, config.max_budget, config.kv_score) == (1024, 1024, "bound")
    assert (config.kv_stamp_rule, config.page_size, config.recency_floor) == ("lrfu", 2, 1024)
    assert (config.alpha, config.fade) == (None, pytest.approx(math.exp(-1 / 128)))


def test_the_paper_has_defaults_of_its_own():
    config = take_settings(parse("--kv-policy", "raas", "--kv-stamp-rule", "paper"))
    assert (config.kv_score, config.page_size, config.recency_floor) == ("bound", 16, 0)
    assert (config.alpha, config.fade, config.kv_stamp_ratio) == (None, None, 0.5)
    assert config.stamp_pages(1024) == 32
    assert config.stamp_pages(16) == 1
    alpha = RaasConfig("raas", kv_stamp_rule="alpha", kv_score="exact")
    assert (alpha.alpha, alpha.fade, alpha.page_size, alpha.recency_floor) == (1e-4, None, 16, 0)


def test_the_floor_of_lrfu_is_half_of_any_budget():
    config = RaasConfig("raas", kv_budget=64, kv_max_budget=4096)
    assert config.recency_floor >= config.max_budget // 2


def test_lrfu_takes_what_is_given():
    config = RaasConfig("raas", kv_stamp_decay=256, kv_recency_floor=0)
    assert (config.fade, config.recency_floor) == (pytest.approx(math.exp(-1 / 256)), 0)


@pytest.mark.parametrize(
    ("score", "page", "budget", "steps"),
    [
        ("bound", 2, 512, 4),
        ("bound", 2, 1024, 8),
        ("bound", 16, 512, 16),
        ("bound", 16, 1024, 16),
        ("exact", 16, 1024, 1),
    ],
)
def test_bounds_are_scored_for_whole_pages_at_once(score, page, budget, steps):
    config = RaasConfig("raas", budget, kv_score=score, kv_eviction_page_size=page)
    assert config.scored_steps == steps


def test_settings_leave_other_arguments_alone():
    arguments = {"kv_policy": "window", "kv_budget": 64, "kv_score": None, "tp_size": 2}
    assert take_settings(arguments).kv_policy == "window"
    assert arguments == {"tp_size": 2}


def test_help_explains_every_flag():
    parser = argparse.ArgumentParser()
    add_flags(parser)
    text = " ".join(parser.format_help().split())
    for flag in ("--kv-policy", "--kv-budget", "--kv-eviction-page-size", "--kv-stamp-alpha"):
        assert flag in text
    assert text.count("(tokens") >= 3
    assert "Default: 1024." in text


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"kv_budget": 1000, "kv_eviction_page_size": 16},
            r"--kv-budget must be a multiple of the page size \(16\), got 1000; use 992 or 1008",
        ),
        ({"kv_budget": 0}, r"--kv-budget must be at least one eviction page \(2 tokens\), got 0"),
        ({"kv_budget": -16}, "got -16; use 2 or more"),
        ({"kv_budget": "64"}, r"must be an integer number of tokens, got '64' \(str\)"),
        ({"kv_policy": "lru"}, "--kv-policy must be one of dense, raas, .* got 'lru'"),
        ({"kv_max_budget": 512}, r"--kv-max-budget must be at least --kv-budget \(1024\), got 512"),
        ({"kv_eviction_page_size": 12}, "-page-size must be a power of two, got 12; use 2 or 16"),
        ({"kv_score": "cosine"}, "--kv-score must be one of bound, exact, got 'cosine'"),
        ({"kv_stamp_ratio": 0.0}, "--kv-stamp-ratio must be above 0 and at most 1, got 0.0"),
        ({"kv_stamp_rule": "alpha"}, "add --kv-score exact"),
        ({"kv_stamp_rule": "lru"}, "must be one of lrfu, paper, alpha, got 'lru'"),
        ({"kv_stamp_decay": 0}, "--kv-stamp-decay must be a positive number .* got 0"),
        (
            {"kv_recency_floor": 40, "kv_stamp_rule": "paper"},
            r"--kv-recency-floor must be a multiple of the eviction page size \(16\), got 40; "
            "use 32 or 48",
        ),
        ({"kv_recency_floor": -16}, "--kv-recency-floor must be 0 or a .* got -16; use 0 for none"),
        ({"kv_recency_floor": "48"}, "--kv-recency-floor must be 0 or a .* got '48'"),
        ({"kv_policy": "h2o"}, "--kv-policy h2o gathers .* add --kv-score exact"),
    ],
)
def test_wrong_settings_say_what_must_hold(settings, text):
    with pytest.raises(ValueError, match=text):
        RaasConfig(**{"kv_policy": "raas", **settings})


def test_a_setting_without_the_policy_is_refused():
    with pytest.raises(ValueError, match="--kv-budget must be given together with --kv-policy"):
        take_settings({"kv_budget": 64})
