"""Many requests over one long prefix: time to first token, and how often the prefix is held.

One request brings the prefix into the radix cache. Then the others come at once; each must find it
there. While all of them decode, the slots in use say whether the prefix is held once: they must be
the prefix and what each request holds besides. Arms take turns on one GPU, with the same flags.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.harness.arms import POLICIES, Arm, started
from benchmarks.harness.cli import (
    BY_TOKENS,
    add_arms,
    at_once_flags,
    begin_run,
    bench_parser,
    parse,
    say,
    server_flags,
    within_time,
)
from benchmarks.harness.deadline import poll
from benchmarks.harness.decode_run import Workload
from benchmarks.harness.gate import check_tokens
from benchmarks.harness.prompts import Prompts
from benchmarks.harness.queue import Request, RequestQueue, Served
from benchmarks.harness.rows import RowFile
from benchmarks.harness.shapes import endless, model_path_of

POLL_S = 0.05
# What a minute or two on a CPU can do, with the same code.
QUICK = {
    "shape": "reasoner",
    "server_flags": "--sleep-on-idle",
    "prefix": 512,
    "own": 16,
    "requests": 8,
    "kv_budget": 64,
    "output": 112,
    "rounds": 2,
    "log_steps": 8,
}


def main() -> int:
    args = parse_args()
    deadline, rows = begin_run(args)
    model_path = model_path_of(args.shape)
    arms = [Arm(name, model_path, args.kv_budget, flags_of(args)) for name in args.arms]
    load = Workload(args.own, args.kv_budget, 32, 1, args.seed, model_path)
    rounds: list[list[Round]] = []
    with started(arms, say), within_time(args):
        check_tokens(arms, load, rows, {"shape": args.shape, **load.config()}, deadline)
        for number in range(args.rounds):
            # Another prefix in each round, the same for all arms.
            seed = args.seed + number
            rounds += [[Round(arm, args, Prompts(model_path, seed), deadline) for arm in arms]]
    for arm, seen in zip(arms, zip(*rounds, strict=True), strict=False):
        write(arm, seen, args, rows)
    return 0


class Round:
    """All requests over one prefix on one arm, from an empty cache to their end.

    Attributes:
        cold: Seconds to the first token of the request that brings the prefix.
        first: Seconds to the first token of each of the others.
        cached: Tokens that each of the others found in the radix cache.
        pool_tokens: Slots in use while all decode, at the most.
        held: What they must be if the prefix is held once.

    Raises:
        OutOfTimeError: the deadline has passed.
        RuntimeError: a request failed, did not find the prefix, or held slots that it must not.
    """

    def __init__(
        self, arm: Arm, args: argparse.Namespace, prompts: Prompts, deadline: float
    ) -> None:
        self._arm, self._args, self._deadline = arm, args, deadline
        arm.clear()
        mark = arm.log_size()
        self._queue = RequestQueue(arm.server.url, self._requests(prompts), endless(arm.model_path))
        try:
            self._queue.grow(1)
            self._wait(lambda: bool(self._queue.served and self._queue.served[0].tokens))
            self._queue.grow(args.requests - 1)
            self._wait(lambda: len(self._queue.served) == args.requests)
            self._queue.close()
            self._wait(lambda: not self._queue.is_busy())
        finally:
            self._queue.close()
            while self._queue.is_busy():
                arm.post("/abort_request", abort_all=True)
                time.sleep(POLL_S)
            self._queue.stop()
        for served in self._queue.served:
            arm.check_answer(served.info)
        first, *others = self._queue.served
        self.cold = seconds_to_first(first)
        self.first = [seconds_to_first(served) for served in others]
        self.cached = [int(served.info["cached_tokens"]) for served in others]
        self._check(mark)

    def _requests(self, prompts: Prompts) -> Iterator[Request]:
        prefix, args = prompts.text(0, self._args.prefix), self._args
        while True:
            yield Request(prefix + prompts.fresh(args.own), args.output)

    def _wait(self, condition: Any) -> None:
        while not condition():
            self._queue.check()
            poll(POLL_S, self._deadline)

    def _check(self, mark: int) -> None:
        args, name = self._args, self._arm.name
        if min(self.cached) < args.prefix:
            raise RuntimeError(
                f"all requests of arm {name} must find the prefix, got {self.cached}"
            )
        lines = [line for line in self._arm.decode_batches(mark) if line.running == args.requests]
        if not lines:
            raise RuntimeError(f"arm {name} must log a step of all requests; raise --output")
        self.pool_tokens = max(line.pool_tokens for line in lines)
        kept = min(args.output, args.kv_budget) if self._arm.is_evicting else args.output
        self.held = args.prefix + args.requests * (args.own + kept)
        if self.pool_tokens > self.held:
            raise RuntimeError(
                f"arm {name} must hold the prefix once, so at most {self.held} slots, "
                f"got {self.pool_tokens}"
            )


def seconds_to_first(served: Served) -> float:
    """From sending a request to its first token."""
    return served.seconds[0] - served.sent


def write(arm: Arm, rounds: Sequence[Round], args: argparse.Namespace, rows: RowFile) -> None:
    """Stores the rounds of an arm."""
    config: dict[str, Any] = {"shape": args.shape, "arm": arm.name, "prompt": args.prefix}
    config |= {"own": args.own, "requests": args.requests, "output": args.output}
    config |= {"budget": args.kv_budget}
    medians = [1e3 * statistics.median(seen.first) for seen in rounds]
    for result, values, unit in (
        ("time to first token over a cached prefix, median", medians, "ms"),
        (
            "time to first token over a cached prefix, largest",
            [1e3 * max(seen.first) for seen in rounds],
            "ms",
        ),
        ("time to first token, cold prefix", [1e3 * seen.cold for seen in rounds], "ms"),
        ("slots in use", [seen.pool_tokens for seen in rounds], "slots"),
        ("cached tokens of a prompt", [min(seen.cached) for seen in rounds], "tokens"),
    ):
        rows.write(result, values, unit, config, held_once=rounds[0].held, flags=arm.flags)
    seen = ", ".join(f"{value:.0f}" for value in medians)
    say(f"{arm.name}: first token after {seen} ms, {rounds[0].pool_tokens} slots in use")


def flags_of(args: argparse.Namespace) -> list[str]:
    """The command line that all arms share."""
    pool = 2 * args.prefix + args.requests * (args.own + args.output) + 4096
    logged = ("--stream-interval", "16", "--decode-log-interval", str(args.log_steps))
    chosen = (*BY_TOKENS, *logged, *at_once_flags(args.requests))
    return server_flags(args, *chosen, pool=pool, is_shared=len(args.arms) > 1)


def parse_args() -> argparse.Namespace:
    parser = bench_parser(__doc__)
    add_arms(parser, POLICIES, ["default", "raas"])
    parser.add_argument("--prefix", type=int, default=8192, help="tokens that all prompts share")
    parser.add_argument("--own", type=int, default=64, help="further tokens of each prompt")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--output", type=int, default=1280, help="tokens of an output")
    parser.add_argument("--kv-budget", type=int, default=1024, help="L in tokens")
    parser.add_argument("--rounds", type=int, default=3, help="of each arm, a new prefix in each")
    parser.add_argument("--log-steps", type=int, default=20, help="decode steps to a log line")
    return parse(parser, QUICK)


if __name__ == "__main__":
    sys.exit(main())
