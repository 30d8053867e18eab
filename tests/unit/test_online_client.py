"""SGLang's benchmark runs with its own command line, and says why it failed."""

import gc
import sys
from types import ModuleType

import pytest

from benchmarks.serving.online_client import NAME, run_client


@pytest.fixture
def client(monkeypatch):
    """Stands for SGLang's module."""
    module = ModuleType(NAME)
    monkeypatch.setitem(sys.modules, NAME, module)
    yield module
    gc.unfreeze()


def test_it_sees_its_flags_and_ours_come_back(client, capsys):
    seen = []
    client.cli_main = lambda: (seen.extend(sys.argv), sys.stdout.write("a long table"))
    before = list(sys.argv)
    run_client(["--seed", "3"])
    assert seen == [NAME, "--seed", "3"]
    assert sys.argv == before
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("error", [SystemExit(2), ValueError("no such dataset")])
def test_a_failure_tells_what_it_said(client, error):
    def fail():
        sys.stderr.write("what it said")
        raise error

    client.cli_main = fail
    before = list(sys.argv)
    with pytest.raises(RuntimeError, match="must succeed") as failure:
        run_client([])
    assert "what it said" in str(failure.value)
    assert sys.argv == before
