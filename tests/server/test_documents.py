"""The commands of the documents that need no GPU run as they are written."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from benchmarks.harness.server import LocalServer
from forked_server import environment_at_start
from raas_sglang.life.request import REPORT_FIELDS

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^ *```bash\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
URL, LONG = "http://127.0.0.1:30000", "16000"  # as the documents have them
ASKED = {"kv_policy": "raas", "kv_budget": 512}


def commands(page: str, program: str) -> list[str]:
    """Blocks of a page that run a program."""
    return [code for code in BLOCK.findall((ROOT / page).read_text()) if program in code]


def cpu_command() -> str:
    """How serving.md starts a server without a GPU."""
    (code,) = (code for code in commands("docs/serving.md", "launch_server") if "cpu-env" in code)
    return code.rstrip()


@pytest.fixture(scope="module")
def server():
    """The CPU server of serving.md, started by a shell."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    made = LocalServer([], {})
    code = f"cd {shlex.quote(str(ROOT))}\n{cpu_command()} --port {made.port}"
    made.command = ["bash", "-ec", code]
    made.environment = {**environment_at_start(), "PATH": path}  # the page says the rest itself
    with made as running:
        yield running
        assert running.is_alive(), running.log_end()


@pytest.mark.parametrize("page", ["README.md", "docs/serving.md"])
def test_a_request_is_served_as_it_asks(page, server):
    for block in commands(page, "curl"):
        (curl,) = re.findall(r"^curl .*", block, re.DOTALL | re.MULTILINE)
        assert URL in curl
        assert LONG in curl
        # A small model would write all of these.
        code = curl.replace(URL, server.url).replace(LONG, "20")
        done = subprocess.run(["bash", "-ec", code], capture_output=True, text=True, check=True)
        answer = json.loads(done.stdout)
        report = answer["meta_info"] if "meta_info" in answer else answer["metadata"]["kv"][0]
        assert {name: report[name] for name in ASKED} == ASKED
        assert set(REPORT_FIELDS) <= set(report)


def test_the_server_says_what_it_runs_with(server):
    """As of the section on seeing that it ran."""
    info = requests.get(server.url + "/server_info", timeout=60).json()
    asked = dict(re.findall(r"--(kv-\w+) (\S+)", cpu_command()))
    assert info["kv_policy"] == asked["kv-policy"]
    assert info["kv_budget"] == int(asked["kv-budget"])
