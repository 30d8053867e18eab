"""The commands of the documents that need no GPU run as they are written."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from benchmarks.harness.server import free_port
from raas_sglang.life.request import REPORT_FIELDS

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^ *```bash\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
PORT, LONG = ":30000/", "16000"  # as the documents have them
ASKED = {"kv_policy": "raas", "kv_budget": 512}


def commands(page: str, program: str) -> list[str]:
    """Blocks of a page that run a program."""
    return [code for code in BLOCK.findall((ROOT / page).read_text()) if program in code]


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """A port where the CPU server of serving.md listens, started by a shell."""
    (code,) = (code for code in commands("docs/serving.md", "launch_server") if "cpu-env" in code)
    port, log = free_port(), tmp_path_factory.mktemp("documents") / "log"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with log.open("wb") as out:
        shell = subprocess.Popen(
            ["bash", "-ec", f"{code.rstrip()} --port {port}"],
            cwd=ROOT,
            env={**os.environ, "PATH": path},
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        while not answers(port):
            assert shell.poll() is None, log.read_text()
            time.sleep(0.5)
        yield port
        assert shell.poll() is None, log.read_text()
    finally:
        os.killpg(shell.pid, signal.SIGKILL)


def answers(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
    except requests.RequestException:
        return False


@pytest.mark.parametrize("page", ["README.md", "docs/serving.md"])
def test_a_request_is_served_as_it_asks(page, port):
    for block in commands(page, "curl"):
        (curl,) = re.findall(r"^curl .*", block, re.DOTALL | re.MULTILINE)
        assert PORT in curl
        assert LONG in curl
        # A small model would write all of these.
        code = curl.replace(PORT, f":{port}/").replace(LONG, "20")
        done = subprocess.run(["bash", "-ec", code], capture_output=True, text=True, check=True)
        answer = json.loads(done.stdout)
        report = answer["meta_info"] if "meta_info" in answer else answer["metadata"]["kv"][0]
        assert {name: report[name] for name in ASKED} == ASKED
        assert set(REPORT_FIELDS) <= set(report)


def test_the_server_says_what_it_runs_with(port):
    """As of the section on seeing that it ran."""
    info = requests.get(f"http://127.0.0.1:{port}/server_info", timeout=60).json()
    (code,) = (code for code in commands("docs/serving.md", "launch_server") if "cpu-env" in code)
    asked = dict(re.findall(r"--(kv-\w+) (\S+)", code))
    assert info["kv_policy"] == asked["kv-policy"]
    assert info["kv_budget"] == int(asked["kv-budget"])
