"""Tokens per second of a server whose queue is never empty, in arms that differ in the KV policy.

One arm after the other has the GPU for itself, with the same flags. Requests have a short prompt
and outputs of a fixed length. The state in which such a server is after hours is put together from
requests at staggered depths (`steady_state.py`), and a window of decode steps is measured in it:

    full    More requests than fit, so that the server decides how many run, and which give way.
    fits    As many requests as fit while their lengths swing, and no more, so that none gives way:
            what a dense cache could do at best, if somebody knew the right number for each length.
            SGLang still holds back those for which its own estimate sees no room. Requests of an
            evicting arm never give way, so for it both are the same.

With --record the profiler looks at some steps after the last window of each output length.

The state `full` puts that shortcut to the test: the same queues with requests that all begin at
depth 0. They come one by one over the length of an output, so that their depths spread by
themselves, and are measured for one more. Requests that came at once would stay in step.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness.arms import POLICIES, Arm, groups, started
from benchmarks.harness.cli import (
    BY_TOKENS,
    add_arms,
    add_together,
    begin_run,
    bench_parser,
    parse,
    say,
    server_flags,
    within_time,
)
from benchmarks.harness.decode_run import Workload
from benchmarks.harness.gate import check_tokens
from benchmarks.harness.profiler import record_steps, write_steps
from benchmarks.harness.prompts import Prompts
from benchmarks.harness.queue import RequestQueue
from benchmarks.harness.rows import RowFile
from benchmarks.harness.shapes import endless, model_path_of
from benchmarks.serving.queue_run import QueueRun
from benchmarks.serving.steady_state import Work, requests
from raas_sglang.cpu import has_driver

# SGLang's estimate of what a running request will need falls for so many decode steps.
SETTLE_STEPS = 620
PREFILLED_TOGETHER = 4  # no more are allowed to SGLang's --min-free-slots-delay
STATES = ("steady", "full")
KINDS = ("fits", "full")  # in this order: a queue that has become full does not shrink
# What a minute or two on a CPU can do, with the same code.
QUICK = {
    "shape": "reasoner",
    "arms": ["default", "raas"],
    "together": True,
    "server_flags": "--sleep-on-idle",
    "outputs": [256],
    "prompt": 32,
    "kv_budgets": [64],
    "steps": 80,
    "warmup": 16,
    "settle": 32,
    "log_steps": 8,
    "interval": 8,
    "max_running_requests": 24,
    "max_total_tokens": 4096,
}


def main() -> int:
    args = parse_args()
    deadline, rows = begin_run(args)
    model_path = model_path_of(args.shape)
    arms = [Arm(name, model_path, max(args.kv_budgets), flags_of(args)) for name in args.arms]
    with within_time(args):
        for group in groups(arms, args.together):
            with started(group, say):
                for arm in group:
                    ArmBench(arm, args, model_path, rows, deadline).run()
    return 0


class ArmBench:
    """The measurements of one arm.

    Args:
        arm: A started server.
        args: The command line.
        model_path: Folder with the model's `config.json`.
        rows: Where results go.
        deadline: `time.monotonic` at which to give up.
    """

    def __init__(
        self, arm: Arm, args: argparse.Namespace, model_path: Path, rows: RowFile, deadline: float
    ) -> None:
        self.arm, self.args, self.rows, self.deadline = arm, args, rows, deadline
        self.model_path = model_path
        self.prompts = Prompts(model_path, args.seed)
        seen = arm.information()
        self.pool, self.memory_fraction = seen["max_total_num_tokens"], seen["mem_fraction_static"]

    def run(self) -> None:
        """Measures every output length, with every budget where there is one."""
        args, budget = self.args, max(self.args.kv_budgets)
        load = Workload(args.prompt, budget, 32, args.interval, args.seed, self.model_path)
        config = {"shape": args.shape, **load.config()}
        check_tokens([self.arm], load, self.rows, config, self.deadline)
        for output in args.outputs:
            for budget in args.kv_budgets if self.arm.is_evicting else [None]:
                work = Work(args.prompt, output, budget)
                if "steady" in args.states:
                    self.measure_steady_state(work)
                if "full" in args.states:
                    self.measure_full_run(work)

    def measure_steady_state(self, work: Work) -> None:
        """Puts the steady state together and measures a window of it for each kind of queue."""
        fitting = self.fitting(work)
        run = self.queue_run(work, self.args.settle, fitting - 1)
        try:
            run.queue.grow(1)
            run.wait_for_token(0)
            run.wait_steps(self.args.settle)
            run.queue.grow(fitting - 1)
            run.wait_for_token(min(1, fitting - 1))
            run.wait_steps(work.steps_to_saturation)
            self.measure_kinds(run, "steady state", self.args.steps)
            if self.args.record:
                self.record(work, self.kinds()[-1])
        finally:
            run.end()

    def measure_full_run(self, work: Work) -> None:
        """Measures the same queues without the shortcut."""
        self.arm.clear()
        run = self.queue_run(work, 0, 0)
        try:
            run.grow_over(self.fitting(work), work.output)
            self.measure_kinds(run, "full run", work.output)
        finally:
            run.end()

    def measure_kinds(self, run: QueueRun, state: str, steps: int) -> None:
        """Measures a window of a state for each kind of queue."""
        for kind in self.kinds():
            if kind == "full":
                run.queue.grow(self.waiting(run.work))
            run.wait_steps(self.args.warmup)
            self.write(run, state, kind, steps)

    def kinds(self) -> list[str]:
        """Kinds of queue that are measured, in their order."""
        if self.arm.is_evicting:
            return ["full"]
        return [kind for kind in KINDS if kind in self.args.queues]

    def fitting(self, work: Work) -> int:
        """Requests that fit into this arm's pool until the first window has passed."""
        args = self.args
        steps = args.settle + args.warmup + args.steps
        return work.fitting(self.pool, args.max_running_requests, steps)

    def waiting(self, work: Work) -> int:
        """Requests that are sent beside those, more than the server could admit too early."""
        return min(3 * self.fitting(work), self.args.max_running_requests) + 16

    def queue_run(self, work: Work, pilot: int, staggered: int) -> QueueRun:
        """A queue that has sent nothing yet."""
        params = {**endless(self.arm.model_path), "stream_interval": self.args.interval}
        if work.budget is not None:
            params["custom_params"] = {"kv_budget": work.budget}
        source = requests(work, self.prompts, pilot, staggered)
        queue = RequestQueue(self.arm.server.url, source, params)
        args = self.args
        return QueueRun(self.arm, work, queue, args.log_steps, args.interval, self.deadline)

    def record(self, work: Work, kind: str) -> None:
        """Stores which kernels took the time of some steps after the last window."""
        trace = record_steps(self.arm, self.args.record, self.deadline)
        label = f"{self.arm.name}, output {work.output}, L {work.budget}"
        config = self.config(work, queue=kind, recorded_steps=self.args.record)
        write_steps(trace, self.arm, label, config, self.rows)

    def config(self, work: Work, **chosen: Any) -> dict[str, Any]:
        """What a row says of what was chosen."""
        about = {"shape": self.args.shape, "arm": self.arm.name}
        return {**about, **dataclasses.asdict(work), **chosen}

    def write(self, run: QueueRun, state: str, kind: str, steps: int) -> None:
        """Measures a window and stores it."""
        seen, work = run.window(steps, kind == "full"), run.work
        details = dataclasses.asdict(seen)
        rate = details.pop("rate")
        config = self.config(work, state=state, queue=kind)
        about = {"pool_size": self.pool, "memory_fraction": self.memory_fraction}
        # Of one run, so its parts say how far it scattered.
        about |= {"spread": [min(seen.parts), max(seen.parts)], "flags": self.arm.flags}
        self.rows.write("throughput", [rate], "tokens/s", config, **details, **about)
        say(
            f"{self.arm.name}, output {work.output}, L {work.budget}, {state}, queue {kind}: "
            f"{rate:.0f} tokens/s, {seen.running:.1f} running, "
            f"{seen.pool_tokens / self.pool:.0%} of {self.pool} slots, "
            f"{seen.retractions} retracted, {seen.steps} steps in {seen.seconds:.1f} s"
        )


def flags_of(args: argparse.Namespace) -> list[str]:
    """The command line that all arms share.

    Where requests end one by one, each prefill of one prompt would make all others wait; so prompts
    wait for each other, and are prefilled in graphs of their sizes.
    """
    most = str(args.max_running_requests)
    prefills = [str(count * args.prompt) for count in range(1, PREFILLED_TOGETHER + 1)]
    graphs = ("--cuda-graph-max-bs-decode", most, "--cuda-graph-bs-prefill", *prefills)
    longest = args.prompt + max(args.outputs) + args.settle + 64
    chosen = (
        *(*BY_TOKENS, "--max-running-requests", most),
        *("--min-free-slots-delay", str(PREFILLED_TOGETHER)),
        *(graphs if has_driver() else ()),
        *("--context-length", str(longest), "--decode-log-interval", str(args.log_steps)),
    )
    return server_flags(args, *chosen, pool=args.max_total_tokens)


def parse_args() -> argparse.Namespace:
    parser = bench_parser(__doc__)
    add_arms(parser, POLICIES, ["default", "off", "raas"])
    add_together(parser)
    lengths = [2048, 4096, 8192, 16384, 32768]
    parser.add_argument("--outputs", type=int, nargs="+", default=lengths, help="tokens")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of a prompt")
    parser.add_argument(
        "--kv-budgets", type=int, nargs="+", default=[512, 1024, 2048], help="each L in tokens"
    )
    parser.add_argument("--queues", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument(
        "--states", nargs="+", choices=STATES, default=["steady"], help="full: no shortcut"
    )
    parser.add_argument("--steps", type=int, default=1000, help="decode steps of a window")
    parser.add_argument("--warmup", type=int, default=100, help="decode steps before a window")
    parser.add_argument(
        "--record", type=int, default=0, help="steps after each last window, kernel by kernel"
    )
    parser.add_argument(
        "--settle", type=int, default=SETTLE_STEPS, help="steps of the first request alone"
    )
    # A multiple of 128, which matrix products like best.
    parser.add_argument("--max-running-requests", type=int, default=640)
    parser.add_argument("--max-total-tokens", type=int, help="pool; what fits by default")
    parser.add_argument("--interval", type=int, default=64, help="tokens in one message")
    parser.add_argument("--log-steps", type=int, default=20, help="decode steps to a log line")
    return parse(parser, QUICK)


if __name__ == "__main__":
    sys.exit(main())
