"""What a request may ask for, and how its lengths follow from it."""

import pytest

from raas_kernels import Policy
from raas_sglang.config import RaasConfig
from raas_sglang.life.options import RequestOptions, parse_options
from raas_sglang.life.request import REPORT_FIELDS, RequestState
from raas_sglang.policies import POLICIES

CONFIG = RaasConfig(kv_policy="raas", kv_budget=64, kv_max_budget=512)
CONTEXT = 4096


def parse(custom_params, config=CONFIG, max_new_tokens=2000, input_len=100):
    return parse_options(custom_params, config, CONTEXT, max_new_tokens, input_len)


def test_a_request_that_names_nothing_gets_the_servers_choice():
    assert parse(None) == RequestOptions(Policy.RAAS, 64, evicts=True)
    assert parse({"thinking_budget": 9}) == RequestOptions(Policy.RAAS, 64, evicts=True)


def test_a_request_overrides_either_part():
    assert parse({"kv_policy": "window"}) == RequestOptions(Policy.WINDOW, 64, evicts=True)
    assert parse({"kv_budget": 512}) == RequestOptions(Policy.RAAS, 512, evicts=True)
    assert not parse({"kv_policy": "dense"}).evicts


@pytest.mark.parametrize("policy", POLICIES)
def test_a_request_may_name_any_policy(policy):
    assert parse({"kv_policy": policy}).policy is POLICIES[policy].kind


def test_a_budget_that_holds_the_whole_output_never_evicts():
    assert not parse({"kv_budget": 512}, max_new_tokens=512).evicts
    assert parse({"kv_budget": 512}, max_new_tokens=513).evicts
    # Above --kv-max-budget there is no eviction state, and none is needed.
    assert not parse({"kv_budget": 1024}, max_new_tokens=1000).evicts
    # Nor of the context, which is the end of any output, even if the server's budget is above it.
    assert not parse({"kv_budget": CONTEXT}, max_new_tokens=2 * CONTEXT).evicts
    assert not parse_options(None, CONFIG, CONFIG.kv_budget // 2, None).evicts


def test_what_was_generated_before_counts_towards_the_budget():
    options = parse({"kv_prompt_len": 40}, max_new_tokens=4)
    assert options == RequestOptions(Policy.RAAS, 64, evicts=False, prompt_len=40)
    assert parse({"kv_prompt_len": 40}, max_new_tokens=5).evicts, "60 of 100 and 5"
    assert (options.prompt_of(100), options.prompt_of(1)) == (40, 1)
    assert parse({"kv_prompt_len": 100}) == RequestOptions(Policy.RAAS, 64, True, 100)


@pytest.mark.parametrize(
    ("custom_params", "text"),
    [
        (
            {"kv_policy": "lru"},
            "kv_policy must be one of dense, raas, raas-paper, window, random, h2o",
        ),
        ({"kv_policy": 3}, "got 3"),
        ({"kv_policy": None}, "got None"),
        ({"kv_policy": ["raas"]}, r"got \['raas'\]"),
        ({"kv_budget": "64"}, r"integer number of tokens, got '64' \(str\)"),
        ({"kv_budget": 64.0}, r"got 64.0 \(float\)"),
        ({"kv_budget": True}, r"got True \(bool\)"),
        ({"kv_budget": None}, "got None"),
        ({"kv_budget": 0}, "at least 16 tokens"),
        ({"kv_budget": -64}, "got -64"),
        ({"kv_budget": 65}, "use 64 or 80"),
        ({"kv_budget": 8192}, r"at most the context length \(4096 tokens\), got 8192"),
        ({"kv_budget": 1024}, "restart the server with --kv-max-budget 1024"),
        ({"kv_polcy": "raas"}, r"got unknown \['kv_polcy'\]"),
        ({"kv_prompt_len": 101}, r"from 1 to the length of the input \(100\), got 101"),
        ({"kv_prompt_len": 0}, "got 0; leave it out if all of the input is prompt"),
        ({"kv_prompt_len": "40"}, "got '40'"),
        ({"kv_prompt_len": True}, "got True"),
        ({"kv_prompt_len": None}, "got None"),
        ({"kv_trace": 0}, "kv_trace must be true or false, got 0"),
        ({"kv_trace": "false"}, "got 'false'; send false to keep the request out"),
        ({"kv_trace": None}, "got None"),
        ("raas", "custom_params must be an object, got str"),
        ([1], "custom_params must be an object, got list"),
    ],
)
def test_bad_parameters_say_what_must_hold(custom_params, text):
    with pytest.raises(ValueError, match=text):
        parse(custom_params)


def test_a_request_may_stay_out_of_the_trace():
    assert parse(None).traced
    assert parse({"kv_trace": True}).traced
    assert not parse({"kv_trace": False}).traced
    with pytest.raises(ValueError, match=r"\['kv_trace'\] must be sent to a server started with"):
        parse({"kv_trace": False}, config=None)


def test_without_the_plugin_asking_is_refused_and_silence_is_not():
    assert parse(None, config=None) is None
    assert parse({"kv_of_another_plugin": 1}, config=None) is None
    assert parse([1], config=None) is None
    with pytest.raises(ValueError, match="must be sent to a server started with --kv-policy"):
        parse({"kv_policy": "raas"}, config=None)


def test_a_beam_search_is_refused_whatever_its_policy():
    for policy in ("raas", "dense"):
        with pytest.raises(ValueError, match=r"beam_width must be 1 .* got 2; leave it out"):
            parse_options({"kv_policy": policy}, CONFIG, CONTEXT, 100, beam_width=2)
    assert parse_options(None, CONFIG, CONTEXT, 100, beam_width=1)


def request(policy=Policy.RAAS, evicts=True, input_len=100, **options):
    return RequestState(RequestOptions(policy, 64, evicts, **options), input_len)


def test_lengths_of_a_request_that_overwrites():
    state = request()
    state.prefilled(100)
    for _ in range(64):
        assert not state.is_saturated
        state.step()
    assert (state.logical_len, state.resident_len) == (164, 164)
    # The budget is full, nothing is lost yet.
    assert (state.is_saturated, state.has_overwritten) == (True, False)
    for _ in range(6):
        state.step()
    assert (state.is_saturated, state.has_overwritten) == (True, True)
    assert dict(zip(REPORT_FIELDS, ("raas", 64, 170, 164, 6), strict=True)) == state.report()


def test_lengths_of_a_request_that_was_retracted():
    state = request()
    state.retract(164)
    assert state.skipped_len == 0
    state.retract(170)
    assert state.skipped_len == 6
    assert state.kept(list(range(170))) == [*range(100), *range(106, 170)]
    state.prefilled(100)  # the first chunk ends with the prompt
    assert (state.logical_len, state.has_overwritten, state.is_resuming) == (100, False, False)
    state.prefilled(101)  # the second begins with the seventh generated token
    assert (state.logical_len, state.has_overwritten, state.is_resuming) == (107, True, True)
    state.prefilled(164)
    assert (state.logical_len, state.is_saturated, state.generated_len) == (170, True, 70)
    state.resume()
    state.step()
    assert (state.logical_len, state.resident_len, state.is_resuming) == (171, 164, False)


def test_a_request_that_keeps_everything_is_prefilled_whole():
    state = request(evicts=False)
    state.retract(160)
    assert (state.skipped_len, state.is_bounded) == (0, True)


def test_what_was_generated_before_is_left_out_at_once_and_not_counted():
    state = request(input_len=200, prompt_len=100)
    assert (state.prompt_len, state.skipped_len, state.counted_len) == (100, 36, 36)
    state.arrive(1)  # refused: one token is left of it
    assert (state.prompt_len, state.skipped_len, state.counted_len) == (1, 0, 0)


def test_a_dense_request_is_never_saturated():
    state = request(Policy.DENSE, evicts=False)
    state.prefilled(5000)
    state.step()
    assert (state.is_saturated, state.is_bounded, state.resident_len) == (False, False, 5001)
    assert state.report()["kv_budget"] is None


def test_nothing_that_is_overwritten_is_shared():
    state = request()
    state.prefilled(120)
    assert state.matchable_len(119) == 100
    # It is prefilled with generated tokens, which the next steps will overwrite.
    assert state.shareable_len(120) == 100
    assert state.shareable_len(80) == 80
    assert state.finish(120) == 120
    for _ in range(44):
        state.step()
    # It ends with L + 1 tokens, of which the last was not computed.
    assert state.finish(164) == 164
    state.step()  # one in flight
    assert state.finish(164) == 100


def test_a_dense_request_shares_all():
    state = request(Policy.DENSE, evicts=False)
    state.prefilled(200)
    assert (state.matchable_len(199), state.shareable_len(200), state.finish(200)) == (
        199,
        200,
        200,
    )
