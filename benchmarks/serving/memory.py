"""Device memory besides weights and KV pool, and the pool that SGLang makes of the rest.

Each arm runs alone with all of SGLang's defaults, so that it sizes its pool by itself. Long prompts
are prefilled in chunks and then decode past saturation, all at the same time; meanwhile the driver
is asked again and again how much is lent. The arm's share is what was lent most, less weights and
pool. On a CPU it is the memory of the server's processes, which says that the script works.
"""

import argparse
import shlex
import sys
import threading
import time
from typing import Any

import psutil

from benchmarks.harness.arms import POLICIES, Arm, started
from benchmarks.harness.cli import (
    add_arms,
    add_requests,
    begin_run,
    bench_parser,
    parse,
    say,
    weight_flags,
)
from benchmarks.harness.prompts import Prompts
from benchmarks.harness.rows import RowFile, gpu_query
from benchmarks.harness.shapes import endless, model_path_of
from raas_sglang.cpu import has_driver

POLL_S = 0.2
MIB_PER_GIB = 1024.0
QUICK = {
    "shape": "reasoner",
    "arms": ["default", "raas"],
    "server_flags": "--sleep-on-idle --mem-fraction-static 0.3",
    "requests": 8,
    "prompt": 300,
    "output": 120,
    "kv_budget": 64,
}


class Watch:
    """Asks over and over how much memory an arm uses, until it is left.

    Args:
        arm: A started server, alone on its device.
    """

    def __init__(self, arm: Arm) -> None:
        self.peak_mib = 0.0
        self._arm, self._ended = arm, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            self.peak_mib = max(self.peak_mib, used_mib(self._arm))
            if self._ended.wait(POLL_S):
                return


def main() -> int:
    args = parse_args()
    deadline, rows = begin_run(args)
    before = used_mib(None)
    for name in args.arms:
        arm = Arm(name, model_path_of(args.shape), args.kv_budget, flags_of(args))
        with started([arm], say):
            with Watch(arm) as watch:
                run(arm, args, deadline)
            write(arm, watch.peak_mib - before, args, rows)
    return 0


def run(arm: Arm, args: argparse.Namespace, deadline: float) -> None:
    """Sends all requests in one call and waits for them, as long as there is time.

    Raises:
        RuntimeError: one of them did not generate what it was asked for.
    """
    lengths = [args.prompt] * args.requests
    model_path = model_path_of(args.shape)
    params = {**endless(model_path), "max_new_tokens": args.output}
    prompts = Prompts(model_path, args.seed).batch(lengths)
    answers = arm.post("/generate", input_ids=prompts, sampling_params=params).json()
    short = [a for a in answers if a["meta_info"]["completion_tokens"] != args.output]
    if short or time.monotonic() > deadline:
        raise RuntimeError(
            f"all {args.requests} requests of arm {arm.name} must generate {args.output} tokens "
            f"within --seconds, got {len(short)} that did not; raise it or lower --requests"
        )


def used_mib(arm: Arm | None) -> float:
    """Memory in use on the device, in MiB; without a GPU by the processes of an arm."""
    if has_driver():
        used = gpu_query("memory.used")
        assert used is not None, "a driver comes with nvidia-smi"
        return float(used[0])
    if arm is None or arm.server.process is None:
        return 0.0
    family = psutil.Process(arm.server.process.pid).children(recursive=True)
    return sum(process.memory_info().rss for process in family) / 2**20


def write(arm: Arm, peak_mib: float, args: argparse.Namespace, rows: RowFile) -> None:
    """Stores the pool and what was in use besides."""
    information = arm.information()
    usage: dict[str, Any] = information["internal_states"][0]["memory_usage"]
    names = ("shape", "requests", "prompt", "output", "kv_budget")
    config = {"arm": arm.name, **{name: getattr(args, name) for name in names}}
    tokens = information["max_total_num_tokens"]
    besides = peak_mib / MIB_PER_GIB - usage["weight"] - usage["kvcache"]
    details = {"memory_usage_gib": usage, "peak_gib": peak_mib / MIB_PER_GIB, "flags": arm.flags}
    slots = information["internal_states"][0]["effective_max_running_requests_per_dp"]
    rows.write("tokens in the KV pool", [tokens], "tokens", config, request_slots=slots)
    rows.write("memory besides weights and KV pool", [besides], "GiB", config, **details)
    say(
        f"{arm.name}: pool {tokens} tokens, {usage['kvcache']:.2f} GiB, {slots} request slots, "
        f"besides weights and pool {besides:.2f} GiB"
    )


def flags_of(args: argparse.Namespace) -> list[str]:
    """The command line that the arms share, the rest as SGLang chooses it."""
    return [*weight_flags(args.shape), "--skip-tokenizer-init", *shlex.split(args.server_flags)]


def parse_args() -> argparse.Namespace:
    parser = bench_parser(__doc__)
    add_arms(parser, POLICIES, ["default", "off", "raas"])
    add_requests(parser, prompt=2048)
    parser.add_argument("--requests", type=int, default=256, help="sent all at once")
    parser.add_argument("--output", type=int, default=1200, help="tokens that each generates")
    return parse(parser, QUICK)


if __name__ == "__main__":
    sys.exit(main())
