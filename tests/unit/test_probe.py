"""``check --deep``: all is well here, and each fault in the life of a request is noticed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "probe_program.py"


@pytest.fixture(scope="module")
def failed():
    """By fault: the scenarios that fail, and what does not hold in them."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, PROGRAM], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_nothing_fails_without_a_fault(failed):
    assert failed["none"] == {}


@pytest.mark.parametrize(
    ("fault", "scenario", "said"),
    [
        ("fill ids of a request that ends", "ends_without_a_step_in_flight", "tree_purity"),
        ("saturated one token late", "saturates", "budget_bound"),
        ("all of it is shared", "saturates", "tree_purity"),
        ("what it will overwrite is shared", "retracts_and_resumes", "cache_protected_len"),
        ("nothing of it is shared", "dense", "tree_purity"),
        ("a step in flight is forgotten", "ends_with_a_step_in_flight", "tree_purity"),
        ("prefilled in full", "retracts_and_resumes", "budget_bound"),
        ("not laid out again", "retracts_and_resumes", "of its"),
        ("reserves too little", "waits_for_its_budget", "Out of memory"),
        ("reserves as a dense one", "waits_for_its_budget", "1 of 3 were admitted"),
    ],
)
def test_a_fault_is_noticed(failed, fault, scenario, said):
    assert said in failed[fault][scenario]
