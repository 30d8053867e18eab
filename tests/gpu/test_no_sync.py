"""`no_sync`: a decode step reads nothing back from the device that SGLang itself does not read."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from client import FOREVER, post, problem, request

pytestmark = pytest.mark.gpu

STEPS = 300
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def read_backs(server, folder: Path, policy: str | None, budget: int | None) -> Counter[str]:
    """Copies to the host and waits for the device in the first 300 steps of four requests."""
    profile = {
        "output_dir": str(folder),
        "activities": ["GPU"],
        "with_stack": False,
        "profile_by_stage": True,
        "num_steps": STEPS,
    }
    assert post(server, "/start_profile", profile).status_code == 200
    one = request("", policy, budget, STEPS + 100, **FOREVER)
    prompts = [problem(20, seed=80, inputs=index).prompt for index in range(4)]
    response = post(server, "/generate", {**one, "text": prompts})
    assert response.status_code == 200, response.text
    (path,) = folder.glob("*DECODE.trace.json.gz")
    with gzip.open(path, "rt") as trace:
        names = Counter(event.get("name", "") for event in json.load(trace)["traceEvents"])
    copies = sum(count for name, count in names.items() if name.startswith("Memcpy DtoH"))
    return Counter({"Memcpy DtoH": copies, **{name: names[name] for name in WAITS}})


@pytest.mark.parametrize(
    ("policy", "budget"),
    [("raas", 16), ("raas", 1024), ("h2o", 64), ("window", 64), ("dense", None)],
)
def test_no_sync(pair, tmp_path, policy, budget):
    server, plain_server = pair
    plain = read_backs(plain_server, tmp_path / "plain", None, None)
    ours = read_backs(server, tmp_path / "ours", policy, budget)
    assert plain["Memcpy DtoH"] >= STEPS, "SGLang reads each step's tokens, so the trace shows it"
    for name, count in ours.items():
        # The four requests do not always start in the same step.
        assert count <= plain[name] + STEPS // 10, (name, ours, plain)
