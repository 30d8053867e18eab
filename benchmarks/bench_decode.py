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
import shlex
import sys
from typing import Any

from arms import POLICIES, Arm, started
from command_line import add_arms, at_once_flags, begin_run, bench_parser, parse, say, weight_flags
from decode_run import DecodeRun, Workload
from model_shapes import model_path_of
from rows import RowFile, gpu_query
from token_streams import OutOfTimeError

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
    arms = [
        Arm(name, model_path, load.budget, server_flags(args, load, name)) for name in args.arms
    ]
    config = {"shape": args.shape, **load.config()}
    with started(arms, say):
        try:
            check_tokens(arms, load, rows, config, deadline)
            if args.logical is None:
                for batch in args.batches:
                    measure_in_turns(arms, batch, args.rounds, load, rows, config, deadline)
            else:
                for batch, longest in zip(args.batches, args.logical, strict=True):
                    lengths = logical_lengths(longest, load, args.rounds)
                    for arm in arms:
                        is_prefilled = args.prefilled and not arm.is_evicting
                        measure = measure_prefilled if is_prefilled else measure_over_length
                        measure(arm, batch, lengths, args.rounds, load, rows, config, deadline)
        except OutOfTimeError:
            say(f"{args.seconds} s are used up; {args.out} holds what was measured")
        note_memory(arms, rows, config)
    return 0


def check_tokens(
    arms: list[Arm], load: Workload, rows: RowFile, config: dict[str, Any], deadline: float
) -> None:
    """Before anything is timed: an eviction that is not needed yet changes no token.

    Raises:
        RuntimeError: it did.
    """
    reference: list[list[int]] | None = None
    for arm in (arm for arm in arms if arm.has_plugin):
        for policy in ("dense", "raas"):
            run = DecodeRun(arm, load, batch=4, tokens=load.checked_tokens + 16)
            tokens = run.first_tokens(policy, load.checked_tokens, deadline)
            reference = reference or tokens
            if tokens != reference:
                raise RuntimeError(
                    f"policy {policy} of arm {arm.name} must give the tokens of a dense cache "
                    f"while the budget is not full, got {tokens} for {reference}"
                )
            count = sum(map(len, tokens))
            chosen = {**config, "arm": arm.name, "policy": policy, "batch": 4}
            rows.write("tokens equal to a dense cache's", [count], "tokens", chosen)
            say(f"{arm.name}, policy {policy}: {count} tokens as with a dense cache")


def measure_in_turns(
    arms: list[Arm],
    batch: int,
    rounds: int,
    load: Workload,
    rows: RowFile,
    config: dict[str, Any],
    deadline: float,
) -> None:
    """Brings all arms to the resident length, then measures them round by round."""
    runs = []
    for arm in arms:
        first, last = load.span(arm.is_evicting, rounds)
        # Twice as many, because a pause that comes late lets some more through.
        run = DecodeRun(arm, load, batch, tokens=2 * last - first)
        run.advance(first, deadline)
        arm.pause()
        runs.append(run)
    for number in range(rounds):
        for run in runs:
            run.take_turn(deadline)
        seen = ", ".join(f"{r.arm.name} {r.windows[-1].milliseconds:.3f} ms" for r in runs)
        say(f"batch {batch}, round {number + 1}: {seen}")
    for run in runs:
        run.end()
        run.write("inter-token latency at one resident length", run.windows, rows, config)


def measure_over_length(
    arm: Arm,
    batch: int,
    lengths: list[int],
    rounds: int,
    load: Workload,
    rows: RowFile,
    config: dict[str, Any],
    deadline: float,
) -> None:
    """Decodes one batch to a logical length and measures on the way."""
    tokens = lengths[-1] - load.prompt + load.spare
    run = DecodeRun(arm, load, batch, tokens)
    for length in lengths:
        write_length(run, length, length - load.prompt, rounds, rows, config, deadline)
    run.end()


def measure_prefilled(
    arm: Arm,
    batch: int,
    lengths: list[int],
    rounds: int,
    load: Workload,
    rows: RowFile,
    config: dict[str, Any],
    deadline: float,
) -> None:
    """The same of an arm that keeps every token: a prompt takes it to the length at once."""
    tokens = rounds * load.stride + 4 * load.interval
    for length in lengths:
        filled = dataclasses.replace(load, prompt=length - tokens)
        run = DecodeRun(arm, filled, batch, tokens + load.spare)
        prefilled = {**config, "is_prefilled": True}
        write_length(run, length, tokens, rounds, rows, prefilled, deadline)
        run.end()


def write_length(
    run: DecodeRun,
    length: int,
    tokens: int,
    rounds: int,
    rows: RowFile,
    config: dict[str, Any],
    deadline: float,
) -> None:
    """Measures the windows before a logical length, where so many tokens are generated."""
    load = run.load
    # A window begins and ends with a message, up to an interval late, and the request goes on.
    first = tokens - rounds * load.stride - 2 * load.interval
    windows = [run.window_at(first + number * load.stride, deadline) for number in range(rounds)]
    run.write(f"inter-token latency at {length} logical tokens", windows, rows, config)
    said = f"{run.arm.name}, batch {run.batch}, {length} logical"
    say(f"{said}: {windows[-1].milliseconds:.3f} ms")


def logical_lengths(longest: int, load: Workload, rounds: int) -> list[int]:
    """After saturation, at every power of two, and at the longest."""
    saturated = load.prompt + load.budget + 4 * load.interval + rounds * load.stride
    between = [2**n for n in range(40) if saturated < 2**n < longest]
    return [saturated, *between, *([longest] if longest > saturated else [])]


def note_memory(arms: list[Arm], rows: RowFile, config: dict[str, Any]) -> None:
    """Stores what each server says of its memory, and of an arm alone all that the device lent."""
    used = gpu_query("memory.used") if len(arms) == 1 else None
    for arm in arms:
        usage = arm.information()["internal_states"][0]["memory_usage"]
        lines = [line for line in arm.server.log().splitlines() if "avail mem" in line]
        details = {"memory_usage_gb": usage, "log": lines, "flags": arm.flags}
        chosen = {**config, "arm": arm.name}
        rows.write("KV pool", [usage["kvcache"]], "GB", chosen, **details)
        if used:
            rows.write("device memory in use after the run", [float(used[0])], "MiB", chosen)


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


def server_flags(args: argparse.Namespace, load: Workload, arm: str) -> list[str]:
    """The command line of an arm without its policy: the same for all but the pool."""
    most = max(args.batches)
    pool = args.max_total_tokens or slots_needed(args, load, arm.startswith("raas"))
    # Arms that share a device see each other's memory as taken while they size their pools.
    share = ("--mem-fraction-static", "0.92") if len(args.arms) > 1 else ()
    return [
        *weight_flags(args.shape),
        *share,
        *("--skip-tokenizer-init", "--incremental-streaming-output", "--skip-server-warmup"),
        *("--disable-prefill-cuda-graph", "--random-seed", str(args.seed)),
        *(*at_once_flags(most), "--max-total-tokens", str(pool)),
        *shlex.split(args.server_flags),
    ]


def parse_args() -> argparse.Namespace:
    parser = bench_parser(__doc__)
    add_arms(parser, POLICIES, ["default", "raas"])
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
    parser.add_argument("--prompt", type=int, default=256, help="tokens of a prompt")
    parser.add_argument("--kv-budget", type=int, default=1024, help="L in tokens")
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
