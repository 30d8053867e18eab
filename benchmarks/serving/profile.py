"""Where the time of a decode step goes: the kernels of some steps by name, arm by arm.

Each arm decodes one batch until an evicting one is saturated; an arm that keeps every token gets
there, or to --logical tokens, by its prompts. Then SGLang's own profiler records some steps. For
each arm and batch one row holds the device's time and the kernels that took the most of it.
"""

import argparse
import dataclasses
import sys

from benchmarks.harness.arms import POLICIES, Arm, is_evicting, started
from benchmarks.harness.cli import (
    BY_TOKENS,
    add_arms,
    add_requests,
    at_once_flags,
    begin_run,
    bench_parser,
    parse,
    say,
    server_flags,
    within_time,
)
from benchmarks.harness.decode_run import DecodeRun, Workload
from benchmarks.harness.gate import check_tokens
from benchmarks.harness.kernel_times import Trace
from benchmarks.harness.profiler import record_steps, write_steps
from benchmarks.harness.shapes import model_path_of
from raas_sglang.cpu import has_driver

WARM_UP_TOKENS = 4096  # the profiler takes seconds to begin at first
# What a minute or two on a CPU can do, with the same code.
QUICK = {
    "shape": "reasoner",
    "server_flags": "--sleep-on-idle",
    "batches": [4],
    "prompt": 32,
    "kv_budget": 64,
    "interval": 8,
}


def main() -> int:
    args = parse_args()
    deadline, rows = begin_run(args)
    model_path = model_path_of(args.shape)
    window = 2 * args.interval
    load = Workload(args.prompt, args.kv_budget, window, args.interval, args.seed, model_path)
    arms = [Arm(name, model_path, load.budget, flags_of(args, load, name)) for name in args.arms]
    config = {"shape": args.shape, **load.config()}
    with started(arms, say), within_time(args):
        check_tokens(arms, load, rows, config, deadline)
        for arm in arms:
            record(arm, 1, WARM_UP_TOKENS, args, load, deadline)
        for batch in args.batches:
            for arm in arms:
                trace = profile(arm, batch, args, load, deadline)
                chosen = {**config, "arm": arm.name, "batch": batch}
                chosen |= {"logical": args.logical, "recorded_steps": args.steps}
                write_steps(trace, arm, f"{arm.name}, batch {batch}", chosen, rows, args.kernels)
    return 0


def profile(
    arm: Arm, batch: int, args: argparse.Namespace, load: Workload, deadline: float
) -> Trace:
    """Records some steps of one batch on one arm.

    Raises:
        OutOfTimeError: the deadline has passed.
        RuntimeError: a request failed or ended too early, or the profiler failed.
    """
    trace, are_running = record(arm, batch, load.spare, args, load, deadline)
    if not are_running:
        raise RuntimeError(
            f"all {batch} requests of arm {arm.name} must run until the steps are recorded, but "
            "some had ended; record fewer --steps or raise SPARE_MESSAGES"
        )
    return trace


def record(
    arm: Arm,
    batch: int,
    spare: int,
    args: argparse.Namespace,
    load: Workload,
    deadline: float,
) -> tuple[Trace, bool]:
    """Records some steps and says if all requests still ran after them; errors as of `profile`.

    Args:
        arm: A started server, running nothing.
        batch: Requests.
        spare: Tokens that each may generate beyond the recorded ones, while the profiler works.
        args: The command line.
        load: The requests.
        deadline: `time.monotonic` at which to give up.
    """
    before = 2 * load.interval + (load.budget if arm.is_evicting else 0)
    tokens = before + args.steps + spare
    if not arm.is_evicting:
        length = args.logical or load.prompt + load.budget
        load = dataclasses.replace(load, prompt=length - before)
    run = DecodeRun(arm, load, batch, tokens)
    run.advance(before, deadline)
    trace = record_steps(arm, args.steps, deadline)
    are_running = max(run.streams.counts()) < tokens
    run.end()
    return trace, are_running


def flags_of(args: argparse.Namespace, load: Workload, arm: str) -> list[str]:
    """The command line of an arm without its policy: the same for all but the pool."""
    most = max(args.batches)
    longest = load.prompt + load.budget
    if not is_evicting(arm):
        longest = max(args.logical or 0, longest)
    pool = most * (longest + args.steps + load.spare) + 2 * WARM_UP_TOKENS
    graphs = ("--cuda-graph-max-bs-decode", str(most)) if has_driver() else ()
    chosen = (*BY_TOKENS, "--disable-prefill-cuda-graph", *at_once_flags(most), *graphs)
    return server_flags(args, *chosen, pool=pool, is_shared=len(args.arms) > 1)


def parse_args() -> argparse.Namespace:
    parser = bench_parser(__doc__)
    add_arms(parser, POLICIES, ["default", "raas"])
    add_requests(parser)
    parser.add_argument("--batches", type=int, nargs="+", default=[64])
    parser.add_argument("--logical", type=int, help="length of dense texts, prompt + L by default")
    parser.add_argument("--interval", type=int, default=16, help="tokens in one message")
    parser.add_argument("--steps", type=int, default=8, help="decode steps that are recorded")
    parser.add_argument("--kernels", type=int, default=30, help="how many are stored and printed")
    return parse(parser, QUICK)


if __name__ == "__main__":
    sys.exit(main())
