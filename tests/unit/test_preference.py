"""What is preferred: how it goes with what a request asks for, and what refuses to start."""

import json
from types import SimpleNamespace

import pytest

from raas_sglang.config import RaasConfig
from raas_sglang.life import preference
from raas_sglang.life.preference import require_preference, with_preference

PREFERRED = {"temperature": 0.5, "custom_params": {"kv_policy": "dense", "of_others": 1}}


@pytest.mark.parametrize(
    ("asked", "custom"),
    [
        ({}, {"kv_policy": "dense", "of_others": 1}),
        ({"custom_params": None}, {"kv_policy": "dense"}),
        ({"custom_params": {"kv_budget": 32}}, {"kv_policy": "dense", "kv_budget": 32}),
        ({"custom_params": {"kv_policy": "raas"}}, {"kv_policy": "raas"}),
        ({"custom_params": "raas"}, "raas"),
    ],
)
def test_ours_go_by_key_and_the_rest_as_sglang_has_it(asked, custom):
    assert with_preference(asked, PREFERRED).get("custom_params") == custom


def test_without_a_preference_nothing_changes():
    asked = {"custom_params": {"kv_budget": 32}}
    assert with_preference(asked, None) is asked
    assert with_preference(asked, {"custom_params": {"of_others": 1}}) is asked


@pytest.fixture(autouse=True)
def model(monkeypatch):
    config = SimpleNamespace(context_len=4096)
    monkeypatch.setattr(preference, "model_config_of", lambda _: config)


def require(preferred, config):
    require_preference(SimpleNamespace(preferred_sampling_params=preferred), config)


CONFIG = RaasConfig(kv_policy="raas", kv_budget=64, kv_max_budget=128)


@pytest.mark.parametrize("preferred", [None, "", {}, {"temperature": 0.5}, PREFERRED])
def test_a_preference_that_can_be_served_starts(preferred):
    require(preferred, CONFIG)
    require(json.dumps(preferred or {}), CONFIG)


@pytest.mark.parametrize(
    ("preferred", "words"),
    [
        ({"custom_params": {"kv_budget": -1}}, "kv_budget must be at least"),
        ({"custom_params": {"kv_budget": 256}}, "kv_budget must be at most --kv-max-budget"),
        # A request may ask for more tokens than the preference does.
        ({"custom_params": {"kv_budget": 256}, "max_new_tokens": 8}, "at most --kv-max-budget"),
        ({"custom_params": {"kv_policy": "lru"}}, "kv_policy must be one of"),
        ({"custom_params": "raas"}, "custom_params must be an object"),
        ({"no_such_parameter": 1}, "no_such_parameter"),
        ({"beam_width": 2}, "beam_width must be 1"),
        ([1], "list"),
        ("{", "property name"),
    ],
)
def test_a_bad_preference_refuses_to_start_with_the_reason(preferred, words):
    with pytest.raises(ValueError, match=f"--preferred-sampling-params must .*{words}"):
        require(preferred, CONFIG)


def test_without_a_policy_a_preferred_one_cannot_be_had():
    with pytest.raises(ValueError, match="must be sent to a server started with --kv-policy"):
        require(PREFERRED, None)
    require({"custom_params": {"of_others": 1}}, None)
    for of_others in ({"no_such_parameter": 1}, [1], "[1]", {"custom_params": [1]}):
        require(of_others, None)
