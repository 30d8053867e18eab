"""The campaign's steps are commands that their benchmarks take."""

import importlib
import subprocess
import sys
from unittest.mock import MagicMock

import pytest

import campaign
from campaign import FOLDER, STEPS, Step, command

ROOT = FOLDER.parent


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_a_command_of_its_benchmark(name, monkeypatch, tmp_path):
    # Only asked for at import here; without a GPU it is not there.
    monkeypatch.setitem(sys.modules, "sgl_kernel.flash_attn", MagicMock())
    script, *arguments = command(STEPS[name], tmp_path, "c1")
    module = importlib.import_module(script.removeprefix("benchmarks/").removesuffix(".py"))
    monkeypatch.setattr("sys.argv", [script, *arguments])
    args = module.parse_args()
    assert args.commit == "c1"
    assert not args.out.is_absolute()
    assert (ROOT / args.out).resolve() == tmp_path.resolve() / f"{STEPS[name].rows}.jsonl"


def test_a_campaign_goes_on_where_it_stopped(monkeypatch, tmp_path, capsys):
    begun = []

    def started(arguments, **rest):
        begun.append(arguments[1])
        return subprocess.CompletedProcess(arguments, len(begun) == 2)

    steps = {name: Step(f"{name}.py", "rows", None) for name in ("first", "second", "third")}
    monkeypatch.setattr(campaign, "STEPS", steps)
    monkeypatch.setattr(subprocess, "run", started)
    flags = ["campaign.py", "--out", str(tmp_path), "--commit", "c1"]
    monkeypatch.setattr(sys, "argv", flags)
    assert campaign.main() == 1
    assert "second did not come to its end" in capsys.readouterr().err
    assert campaign.main() == 0
    names = [script.removeprefix("benchmarks/") for script in begun]
    assert names == ["first.py", "second.py", "third.py", "second.py"]


def test_every_benchmark_has_a_step():
    scripts = {path.name for path in FOLDER.glob("bench_*.py")} | {"soak.py", "profile_step.py"}
    assert {step.command.split()[0] for step in STEPS.values()} == scripts
