"""Inter-token latency of the decode step, in arms that differ in the KV policy alone.

By default all arms decode one batch to the same resident length, prompt + L tokens, and are then
measured in turns: one arm decodes a window of tokens while the others are paused, round by round.
A dense arm grows by a window and a message in each round, so its rounds are laid around that length
and the median is the round at it. An evicting arm is saturated before its first round.

With --logical, one batch of each arm decodes to that length without pause, and the latency is
measured on the way: after saturation and at every power of two. --prefilled spares an arm that
keeps every token the way: its prompts are as long as the texts would be, so that it holds and reads
the same. Each arm then has the pool that it needs: an evicting one no more than its budgets.
"""

import argparse
import dataclasses
import sys
from typing import Any

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
from benchmarks.harness.rows import RowFile, gpu_query
from benchmarks.harness.shapes import model_path_of

# What a minute or two on a CPU can do, with the same code.
QUICK = {
    "shape": "reasoner",
    "server_flags": "--sleep-on-idle",
    "batches": [1, 4],
    "rounds": 3,
    "prompt": 32,
    "kv_budget": 64,
    "window": 16,
    "interval": 8,
}


def main() -> int:
    args = parse_args()
    deadline, rows = begin_run(args)
    model_path = model_path_of(args.shape)
    load = Workload(args.prompt, args.kv_budget, args.window, args.interval, args.seed, model_path)
    arms = [Arm(name, model_path, load.budget, flags_of(args, load, name)) for name in args.arms]
    bench = DecodeBench(args, load, rows, deadline)
    with started(arms, say):
        with within_time(args):
            check_tokens(arms, load, rows, bench.config, deadline)
            if args.logical is None:
                for batch in args.batches:
                    bench.measure_in_turns(arms, batch)
            else:
                for batch, longest in zip(args.batches, args.logical, strict=True):
                    lengths = logical_lengths(longest, load, args.rounds)
                    for arm in arms:
                        bench.measure_over_length(arm, batch, lengths)
        bench.note_memory(arms)
    return 0


class DecodeBench:
    """The measurements of a run.

    Args:
        args: The command line.
        load: What every request is.
        rows: Where results go.
        deadline: `time.monotonic` at which to give up.
    """

    def __init__(
        self, args: argparse.Namespace, load: Workload, rows: RowFile, deadline: float
    ) -> None:
        self.args, self.load, self.rows, self.deadline = args, load, rows, deadline
        self.config: dict[str, Any] = {"shape": args.shape, **load.config()}

    def measure_in_turns(self, arms: list[Arm], batch: int) -> None:
        """Brings all arms to the resident length, then measures them round by round."""
        runs = []
        for arm in arms:
            first, last = self.load.span(arm.is_evicting, self.args.rounds)
            # Twice as many, because a pause that comes late lets some more through.
            run = DecodeRun(arm, self.load, batch, tokens=2 * last - first)
            run.advance(first, self.deadline)
            arm.pause()
            runs.append(run)
        for number in range(self.args.rounds):
            for run in runs:
                run.take_turn(self.deadline)
            seen = ", ".join(f"{r.arm.name} {r.windows[-1].milliseconds:.3f} ms" for r in runs)
            say(f"batch {batch}, round {number + 1}: {seen}")
        for run in runs:
            run.end()
            result = "inter-token latency at one resident length"
            run.write(result, run.windows, self.rows, self.config)

    def measure_over_length(self, arm: Arm, batch: int, lengths: list[int]) -> None:
        """Measures one batch at some logical lengths.

        It decodes to the last of them; an arm that keeps every token may get to each by prompts.
        """
        load = self.load
        if not self.args.prefilled or arm.is_evicting:
            run = DecodeRun(arm, load, batch, lengths[-1] - load.prompt + load.spare)
            for length in lengths:
                self.measure_length(run, length, length - load.prompt, self.config)
            run.end()
            return
        tokens = self.args.rounds * load.stride + 4 * load.interval
        for length in lengths:
            filled = dataclasses.replace(load, prompt=length - tokens)
            run = DecodeRun(arm, filled, batch, tokens + load.spare)
            self.measure_length(run, length, tokens, {**self.config, "is_prefilled": True})
            run.end()

    def measure_length(
        self, run: DecodeRun, length: int, tokens: int, config: dict[str, Any]
    ) -> None:
        """Measures the windows before a logical length, where so many tokens are generated."""
        load, rounds = run.load, self.args.rounds
        # A window begins and ends with a message, up to an interval late, and the request goes on.
        first = tokens - rounds * load.stride - 2 * load.interval
        begins = [first + number * load.stride for number in range(rounds)]
        windows = [run.window_at(begin, self.deadline) for begin in begins]
        run.write(f"inter-token latency at {length} logical tokens", windows, self.rows, config)
        said = f"{run.arm.name}, batch {run.batch}, {length} logical"
        say(f"{said}: {windows[-1].milliseconds:.3f} ms")

    def note_memory(self, arms: list[Arm]) -> None:
        """Stores what each server says of its memory, and of one alone all that the device lent."""
        used = gpu_query("memory.used") if len(arms) == 1 else None
        for arm in arms:
            usage = arm.information()["internal_states"][0]["memory_usage"]
            lines = [line for line in arm.server.log().splitlines() if "avail mem" in line]
            details = {"memory_usage_gb": usage, "log": lines, "flags": arm.flags}
            chosen = {**self.config, "arm": arm.name}
            self.rows.write("KV pool", [usage["kvcache"]], "GB", chosen, **details)
            if used:
                result = "device memory in use after the run"
                self.rows.write(result, [float(used[0])], "MiB", chosen)


def logical_lengths(longest: int, load: Workload, rounds: int) -> list[int]:
    """After saturation, at every power of two, and at the longest."""
    saturated = load.prompt + load.budget + 4 * load.interval + rounds * load.stride
    between = [2**n for n in range(40) if saturated < 2**n < longest]
    return [saturated, *between, *([longest] if longest > saturated else [])]


def slots_needed(args: argparse.Namespace, load: Workload, is_evicting: bool) -> int:
    """Slots of the pool of an arm."""
    if args.logical is None:
        lengths = [load.span(False, args.rounds)[1]] * len(args.batches)
    elif is_evicting:
        lengths = [load.budget] * len(args.batches)
    else:
        lengths = [length + load.spare for length in args.logical]
    # A pause that comes late lets a window more through.
    needed = [
        batch * (load.prompt + length + load.window)
        for batch, length in zip(args.batches, lengths, strict=True)
    ]
    return max(needed) + 4096


def flags_of(args: argparse.Namespace, load: Workload, arm: str) -> list[str]:
    """The command line of an arm without its policy: the same for all but the pool."""
    pool = args.max_total_tokens or slots_needed(args, load, is_evicting(arm))
    chosen = (*BY_TOKENS, "--disable-prefill-cuda-graph", *at_once_flags(max(args.batches)))
    return server_flags(args, *chosen, pool=pool, is_shared=len(args.arms) > 1)


def parse_args() -> argparse.Namespace:
    parser = bench_parser(__doc__)
    add_arms(parser, POLICIES, ["default", "raas"])
    add_requests(parser)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64, 128, 256])
    parser.add_argument("--rounds", type=int, default=5, help="windows of each arm and batch")
    parser.add_argument(
        "--logical",
        type=int,
        nargs="+",
        help="logical length to decode to, without turns: one for all batches, or one for each",
    )
    parser.add_argument(
        "--prefilled", action="store_true", help="dense arms reach --logical by their prompts"
    )
    parser.add_argument("--window", type=int, default=32, help="decode steps that are timed")
    parser.add_argument("--interval", type=int, default=16, help="tokens in one message")
    parser.add_argument("--max-total-tokens", type=int, help="pool; what is needed by default")
    args = parse(parser, QUICK)
    if args.logical and len(args.logical) == 1:
        args.logical *= len(args.batches)
    if args.logical and len(args.logical) != len(args.batches):
        parser.error(f"--logical must have one length or one for each of {args.batches}")
    return args


if __name__ == "__main__":
    sys.exit(main())
