"""`python -m raas_sglang check` on an SGLang that is not the tested one."""

import importlib.metadata

from raas_patches import check
from raas_sglang.__main__ import main


def test_another_version_is_named_with_what_to_install(capsys, monkeypatch):
    version = importlib.metadata.version
    other = {"sglang": "0.5.24"}
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: other.get(name) or version(name)
    )
    assert main(["check"]) == 1
    printed = capsys.readouterr().out
    assert "must be version 0.5.23, the one that RaaS was tested with, got 0.5.24" in printed
    assert "pip install sglang==0.5.23" in printed


def test_a_module_that_another_sglang_breaks_is_one_row_among_the_others(capsys, monkeypatch):
    verify = check.verify

    def broken(modules):
        if modules == ("allocation",):
            raise ImportError("cannot import name 'alloc_for_decode'")
        return verify(modules)

    monkeypatch.setattr(check, "verify", broken)
    assert main(["check"]) == 1
    printed = capsys.readouterr().out
    assert "raas_patches.allocation" in printed
    assert "cannot be imported (cannot import name 'alloc_for_decode')" in printed
    assert "schedule_batch.Req.__init__" in printed
    assert "pip install" not in printed
