"""Flags and keyword arguments of the server: defaults, and what is refused with which words."""

import argparse

import pytest

from raas_sglang.config import RaasConfig, add_flags, take_settings
from raas_sglang.policies import POLICIES


def parse(*argv):
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return vars(parser.parse_args(argv))


def test_without_the_policy_flag_the_plugin_is_off():
    assert take_settings(parse()) is None


def test_the_defaults():
    config = take_settings(parse("--kv-policy", "raas"))
    assert (config.kv_budget, config.max_budget, config.traced) == (1024, 1024, False)


def test_the_trace_stays_on_this_machine_where_no_address_is_named():
    config = take_settings(parse("--kv-policy", "raas", "--kv-trace-endpoint"))
    assert (config.kv_trace_endpoint, config.traced) == ("tcp://127.0.0.1:5558", True)
    named = parse("--kv-policy", "raas", "--kv-trace-endpoint", "tcp://10.0.0.7:5600")
    assert take_settings(named).kv_trace_endpoint == "tcp://10.0.0.7:5600"


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_is_a_choice_and_explained(policy):
    assert take_settings(parse("--kv-policy", policy)).evicts is (policy != "dense")
    parser = argparse.ArgumentParser()
    add_flags(parser)
    assert " ".join(POLICIES[policy].summary.split()) in " ".join(parser.format_help().split())


def test_settings_leave_other_arguments_alone():
    arguments = {"kv_policy": "window", "kv_budget": 64, "kv_max_budget": None, "tp_size": 2}
    assert take_settings(arguments).kv_policy == "window"
    assert arguments == {"tp_size": 2}


def test_help_explains_every_flag():
    parser = argparse.ArgumentParser()
    add_flags(parser)
    text = " ".join(parser.format_help().split())
    for flag in ("--kv-policy", "--kv-budget", "--kv-max-budget", "--kv-trace-interval"):
        assert flag in text
    assert text.count("(tokens") >= 2
    assert "Default: 1024." in text


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"kv_budget": 1000},
            r"--kv-budget must be a multiple of 16 tokens, got 1000; use 992 or 1008",
        ),
        ({"kv_budget": 0}, r"--kv-budget must be at least 16 tokens, got 0"),
        ({"kv_budget": -16}, "got -16; use 16 or more"),
        ({"kv_budget": "64"}, r"must be an integer number of tokens, got '64' \(str\)"),
        ({"kv_policy": "lru"}, "--kv-policy must be one of dense, raas, .* got 'lru'"),
        ({"kv_budget": 65552}, "--kv-max-budget must be at most 65536 tokens, got 65552"),
        ({"kv_max_budget": 512}, r"--kv-max-budget must be at least --kv-budget \(1024\), got 512"),
    ],
)
def test_wrong_settings_say_what_must_hold(settings, text):
    with pytest.raises(ValueError, match=text):
        RaasConfig(**{"kv_policy": "raas", **settings})


def test_a_setting_without_the_policy_is_refused():
    with pytest.raises(ValueError, match="--kv-budget must be given together with --kv-policy"):
        take_settings({"kv_budget": 64})
