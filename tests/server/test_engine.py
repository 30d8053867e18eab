"""`sgl.Engine`: flags as arguments, the choice of each request, errors, two in a process."""

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.harness.server import STRICT
from client import assert_report, problem
from forked_server import PROGRAM
from raas_sglang.cpu import cpu_environment
from reasoner import reasoner_environment

TESTS = Path(__file__).parents[1]


def test_engine():
    environment = {**reasoner_environment(cpu_environment()), **STRICT}
    paths = [str(TESTS), str(TESTS.parent), environment["PYTHONPATH"]]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(TESTS / "engine_program.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    expected = [("raas", 64), ("dense", None), ("raas", 256), ("window", 64)]
    for answer, (policy, budget) in zip(result["answers"], expected, strict=True):
        assert_report(answer, policy, budget)
    right = " " + problem(18).chain
    assert result["answers"][1]["text"] == result["answers"][2]["text"] == right
    assert "kv_budget must be a multiple of 16 tokens, got 101" in result["refusal"]
    assert result["after"] == right, "a refused request disturbs nobody"
    # An engine without a policy, which was there before.
    assert result["without"]["text"] == right
    assert "kv_policy" not in result["without"]["meta_info"]
