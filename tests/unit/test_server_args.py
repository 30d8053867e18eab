"""However SGLang's arguments are made and handed on: it runs as asked, or is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from sglang.srt.arg_groups.overrides import attention_backends_of, resolving_view

from raas_patches.server_args import choose_decode_backend
from raas_sglang.cpu import cpu_environment

TESTS = Path(__file__).parents[1]
AS_ASKED = {"runs": ["window", 64], "shown": ["window", 64]}


def run(*command, **environment):
    paths = [str(TESTS), str(TESTS.parent), cpu_environment()["PYTHONPATH"]]
    environment = {**cpu_environment(), "PYTHONPATH": os.pathsep.join(paths), **environment}
    return subprocess.run(
        [sys.executable, *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.fixture(scope="module")
def pickled(tmp_path_factory):
    return tmp_path_factory.mktemp("arguments") / "server_args.pickle"


@pytest.fixture(scope="module")
def made(pickled):
    done = run(str(TESTS / "server_args_program.py"), str(pickled))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "way",
    [
        *("made", "made by the engine", "command line", "copy", "deepcopy", "pickle", "resolved"),
        *("replace", "fields", "signature", "asdict"),
    ],
)
def test_it_runs_as_asked(made, way):
    assert {**made[way], "port": 0} == {**AS_ASKED, "port": 0}


def test_replace_replaces(made):
    assert made["replace"]["port"] == 1234
    assert made["replace both"]["runs"] == ["raas", 32]
    # What the first had by default is not in the way of the second.
    assert made["replace by a larger"]["runs"] == ["window", 2048]


@pytest.mark.parametrize("way", ["off", "off, sent"])
def test_off_is_shown_as_off(made, way):
    assert (made[way]["runs"], made[way]["shown"]) == (None, [None, None])


def test_what_cannot_run_as_asked_is_refused(made):
    assert made["before"].startswith("TypeError: "), "SGLang's own, before its plugins are loaded"
    assert "must be given together with --kv-policy" in made["turn off"]
    assert "--kv-budget must be a multiple of 16 tokens, got 65" in made["wrong"]
    assert "unknown config field 'kv_budget'" in made["override"]
    assert "AttributeError: server_args.kv_policy assigned after resolution" in made["assign"]


ARRIVAL = """
import msgspec, pickle, sys
from raas_patches.active import config_of
made = pickle.load(open(sys.argv[1], "rb"))
print(config_of(msgspec.structs.replace(made, port=1234)).kv_policy)
"""


def test_arguments_bring_the_plugin_to_another_process(made, pickled):
    done = run("-c", ARRIVAL, str(pickled))
    assert done.stdout.splitlines()[-1:] == ["window"], done.stderr[-3000:]


def test_arguments_are_refused_by_a_process_without_the_plugin(made, pickled):
    done = run("-c", ARRIVAL, str(pickled), SGLANG_PLUGINS="none")
    assert done.returncode != 0
    assert "--kv-policy window must run in every process" in done.stderr


@pytest.mark.parametrize(
    ("policy", "device", "asked", "decode"),
    [
        ("raas", "cuda", None, "flashinfer"),
        ("raas", "cuda", "triton", "triton"),  # which is refused, not overruled
        (None, "cuda", None, "fa3"),
        ("raas", "cpu", None, "fa3"),
    ],
)
def test_decode_runs_on_our_backend_where_it_was_left_open(policy, device, asked, decode):
    """Prefill stays what SGLang chooses, on a Hopper GPU fa3."""
    made = SimpleNamespace(
        kv_policy=policy,
        device=device,
        attention_backend=None,
        prefill_attention_backend=None,
        decode_attention_backend=asked,
    )
    choose_decode_backend(made, lambda given: setattr(given, "attention_backend", "fa3"))
    assert attention_backends_of(resolving_view(made)) == ("fa3", decode)
