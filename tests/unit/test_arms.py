"""An arm of a comparison refuses to be measured where it is not what was asked for."""

import pytest

from benchmarks.harness import arms
from benchmarks.harness.arms import Arm
from benchmarks.harness.shapes import model_path_of


@pytest.fixture
def started(monkeypatch):
    """Starts an arm over a server that is not there, and says what it did."""

    def start(name, *flags, pool=4096, has_plugin=True):
        arm = Arm(name, model_path_of("qwen2.5-7b"), 1024, flags)
        done = []
        monkeypatch.setattr(arm.server, "start", lambda: done.append("start"))
        monkeypatch.setattr(arm, "post", lambda route: done.append(route))
        monkeypatch.setattr(arm, "information", lambda: {"max_total_num_tokens": pool})
        monkeypatch.setattr(arms, "loads_plugin", lambda server: has_plugin)
        arm.start()
        return done

    return start


def test_an_arm_has_the_pool_that_was_asked_for_or_what_fits(started):
    assert started("raas", "--max-total-tokens", "4096") == ["start", "/freeze_gc"]
    assert started("raas") == ["start", "/freeze_gc"]


@pytest.mark.parametrize("flags", [["--max-total-tokens", "9000"], ["--max-total-tokens=9000"]])
def test_a_smaller_pool_is_refused(started, flags):
    with pytest.raises(RuntimeError, match=r"arm raas must hold 9000 tokens, got 4096; ask for"):
        started("raas", "--max-total-tokens", "2000", *flags)


def test_a_larger_pool_is_refused_too(started):
    with pytest.raises(RuntimeError, match=r"arm off must hold 2000 tokens, got 4096; ask for"):
        started("off", "--max-total-tokens", "2000")


def test_the_plugin_must_be_there_or_not(started):
    with pytest.raises(RuntimeError, match="arm default must run without the plugin"):
        started("default")
    with pytest.raises(RuntimeError, match="arm off must run with the plugin"):
        started("off", has_plugin=False)
