"""The campaign's steps are commands that their benchmarks take."""

import importlib
import subprocess
import sys
from unittest.mock import MagicMock

import pytest

from benchmarks import campaign
from benchmarks.campaign import ROOT, STEPS, Step, command


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_a_command_of_its_benchmark(name, monkeypatch, tmp_path):
    # Only asked for at import here; without a GPU it is not there.
    monkeypatch.setitem(sys.modules, "sgl_kernel.flash_attn", MagicMock())
    _, module_name, *arguments = command(STEPS[name], tmp_path, "c1")
    module = importlib.import_module(module_name)
    monkeypatch.setattr("sys.argv", [module_name, *arguments])
    args = module.parse_args()
    assert args.commit == "c1"
    assert not args.out.is_absolute()
    assert (ROOT / args.out).resolve() == tmp_path.resolve() / f"{STEPS[name].rows}.jsonl"


def test_a_campaign_goes_on_where_it_stopped(monkeypatch, tmp_path, capsys):
    begun = []

    def started(arguments, **rest):
        begun.append(arguments[2])
        return subprocess.CompletedProcess(arguments, len(begun) == 2)

    steps = {name: Step(name, "rows", None) for name in ("first", "second", "third")}
    monkeypatch.setattr(campaign, "STEPS", steps)
    monkeypatch.setattr(subprocess, "run", started)
    flags = ["campaign", "--out", str(tmp_path), "--commit", "c1"]
    monkeypatch.setattr(sys, "argv", flags)
    assert campaign.main() == 1
    assert "second did not come to its end" in capsys.readouterr().err
    assert campaign.main() == 0
    names = [module.removeprefix("benchmarks.") for module in begun]
    assert names == ["first", "second", "third", "second"]


def test_every_benchmark_has_a_step():
    folders = [ROOT / "benchmarks" / name for name in ("serving", "ops")]
    scripts = {
        f"{path.parent.name}.{path.stem}"
        for folder in folders
        for path in folder.glob("*.py")
        if "__main__" in path.read_text() and path.stem != "view"  # that one is of a browser
    }
    assert {step.command.split()[0] for step in STEPS.values()} == scripts
