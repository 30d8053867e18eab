"""A plugin of somebody else's on the functions that RaaS hooks, before it and after it."""

import pytest

from client import FOREVER, assert_report, generate, problem


@pytest.mark.parametrize("name", ["retracting_server", "small_server"])
def test_both_plugins_are_in_and_the_budget_holds(request, name):
    both = request.getfixturevalue(name)
    answer = generate(both, problem(4).prompt, "window", 16, 60, **FOREVER)
    assert_report(answer, "window", 16)
    info = answer["meta_info"]
    assert info["evicted_tokens"] in (60 - 16 - 1, 60 - 16), "a step may be in flight"
    assert info["resident_tokens"] == info["prompt_tokens"] + 16
    log = both.log()
    for target in (
        *("ServerArgs.add_cli_args", "ServerArgs.from_cli_args", "ServerArgs.check_server_args"),
        *("Scheduler.__init__", "Scheduler.get_init_info", "Req.__init__"),
        *("TokenizerManager._validate_one_request", "TokenizerManager._wait_one_response"),
        *("allocation.alloc_for_decode", "ScheduleBatch.prepare_for_decode"),
        "ForwardBatch.init_new",
    ):
        assert f"{target}\n" in log, target
    assert "Failed to execute general plugin: broken" in log
