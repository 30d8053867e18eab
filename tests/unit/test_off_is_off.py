"""`off_is_off`: without ``--kv-policy`` no function of SGLang behaves differently, errors included.

But for one: a request that asks for a policy is a 400 instead of an answer under no policy.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from sglang.srt.managers.io_struct import GenerateReqInput

import raas_patches.seam
from raas_patches import installation, plugin, scheduler_always, tokenizer_manager_always
from raas_sglang.cpu import cpu_environment

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def seen():
    """All of SGLang, before and after the plugin was loaded."""
    paths = [str(TESTS), str(TESTS.parent), cpu_environment()["PYTHONPATH"]]
    done = subprocess.run(
        [sys.executable, str(TESTS / "off_is_off_program.py")],
        env={**cpu_environment(), "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


# Of the record of arguments, which has a field for each of our settings.
ARGUMENTS = ("__post_init__", "__reduce__", "add_cli_args", "check_server_args", "from_cli_args")


def test_off_is_off_for_every_function_but_these(seen):
    assert seen["wrong"] == []
    assert seen["stale"] == []
    ours = [f"sglang.srt.server_args.ServerArgs.{name}" for name in ARGUMENTS]
    assert seen["changed"] == sorted([*seen["hooked"], *ours])
    names = [target.removeprefix("sglang.srt.") for target in seen["hooked"]]
    assert names == [
        "managers.scheduler.Scheduler.__init__",
        "managers.scheduler.Scheduler.get_init_info",
        "managers.tokenizer_manager.TokenizerManager._validate_one_request",
    ]


def test_off_is_off_for_arguments_and_their_errors(seen):
    assert seen["after"] == seen["before"]
    assert "kv" in seen["before"]["refused by SGLang"]["error"]
    assert [name for name in seen["before"] if "error" not in seen["before"][name]] == ["served"]


def test_off_is_off_in_the_scheduler(monkeypatch):
    monkeypatch.setattr(installation, "require_seams", lambda traced: pytest.fail("installed"))
    arguments = SimpleNamespace()
    assert scheduler_always.init(SimpleNamespace(), arguments) is None
    info = {"status": "ready"}
    assert scheduler_always.get_init_info(info, SimpleNamespace(server_args=arguments)) is info


@pytest.mark.parametrize(
    "params", [{}, {"temperature": "hot"}, {"custom_params": [1]}, {"custom_params": {"of": 1}}]
)
def test_off_is_off_for_requests_that_ask_for_no_policy(params):
    manager = SimpleNamespace(server_args=SimpleNamespace(), context_len=4096)
    asked = GenerateReqInput(text="solve", sampling_params=params)
    assert tokenizer_manager_always.validate_one_request(manager, asked, [1]) is None
    assert tokenizer_manager_always.validate_one_request(manager, object(), [1]) is None
    assert asked.sampling_params is params


def test_a_request_for_a_policy_is_refused_where_there_is_none():
    manager = SimpleNamespace(server_args=SimpleNamespace(), context_len=4096)
    params = {"custom_params": {"kv_policy": "raas"}}
    asked = GenerateReqInput(text="solve", sampling_params=params)
    with pytest.raises(ValueError, match="must be sent to a server started with --kv-policy"):
        tokenizer_manager_always.validate_one_request(manager, asked, [1])


def test_another_sglang_is_left_alone(monkeypatch):
    monkeypatch.setattr(raas_patches.seam.sglang, "__version__", "0.5.18")
    touched = []
    monkeypatch.setattr(raas_patches.seam.Seam, "install", touched.append)
    monkeypatch.setattr("raas_patches.server_args.declare_settings", lambda: touched.append(None))
    plugin.register()
    assert touched == []


def test_another_sglang_refuses_a_policy_by_name(monkeypatch):
    """SGLang would print its usage, and that it does not know the flag."""
    monkeypatch.setattr(raas_patches.seam.sglang, "__version__", "0.5.18")
    monkeypatch.setattr("sys.argv", ["launch_server", "--kv-policy=raas"])
    with pytest.raises(SystemExit, match=r"got 0.5.18; .*: pip install sglang==0.5.23$"):
        plugin.register()


def test_the_package_brings_one_plugin():
    """A mend for the bundled model must not load for everybody."""
    found = importlib.metadata.distribution("raas-sglang").entry_points
    loaded = [entry.value for entry in found if entry.group.startswith("sglang")]
    assert loaded == ["raas_patches.plugin:register"]
