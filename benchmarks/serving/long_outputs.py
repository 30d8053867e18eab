"""Many long outputs at once in a pool that holds a few of them dense.

Arm `raas`: all requests start together and generate to the end. What the pool held, the speed and
the retractions come from SGLang's own log; no request may be retracted, and the pool may never
hold more than prompt + L tokens for each.

Arm `default`: SGLang without the plugin, with the same pool and as many requests. A steady state
has requests at every depth of their outputs, so each begins at one of its own, its text so far
being its prompt; SGLang runs as many of them as it finds room for. It is ended after
--default-seconds of that.
"""

import argparse
import random
import statistics
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import requests

from benchmarks.harness.arms import Arm, started
from benchmarks.harness.cli import (
    add_arms,
    add_requests,
    begin_run,
    bench_parser,
    parse,
    say,
    server_flags,
)
from benchmarks.harness.decode_log import DecodeBatch, decode_batches, retractions
from benchmarks.harness.prompts import Prompts
from benchmarks.harness.rows import RowFile
from benchmarks.harness.shapes import endless, model_path_of
from raas_sglang.cpu import has_driver

# The answers are fetched and the servers stopped in that much of the time.
SPARE_S = 20.0
# What a minute or two on a CPU can do, with the same code.
QUICK = {
    "shape": "reasoner",
    "requests": 8,
    "prompt": 32,
    "output": 600,
    "kv_budget": 64,
    "pool": 1600,
    "log_interval": 5,
    "default_seconds": 20.0,
}


def main() -> int:
    args = parse_args()
    deadline, rows = begin_run(args)
    broken: list[str] = []
    for name in args.arms:
        arm = Arm(name, model_path_of(args.shape), args.kv_budget, flags_of(args))
        with started([arm], say):
            if arm.is_evicting:
                broken += run_to_the_end(arm, args, rows, deadline)
            else:
                run_in_steady_state(arm, args, rows, deadline)
    for line in broken:
        say(f"BROKEN: {line}")
    return 1 if broken else 0


def run_to_the_end(arm: Arm, args: argparse.Namespace, rows: RowFile, deadline: float) -> list[str]:
    """Runs every request to its end, stores what happened and returns which promises broke."""
    batch = Batch(arm, prompts(args, [args.prompt] * args.requests), [args.output] * args.requests)
    answers = batch.answers(deadline - SPARE_S)
    # A request that was ended while it waited reports nothing.
    infos = [answer["meta_info"] for answer in answers]
    counts = [info.get("completion_tokens", 0) for info in infos]
    finished = sum(count == args.output for count in counts)
    lines = decode_batches(arm.server.log())
    retracted = max(
        sum(info.get("num_retractions", 0) for info in infos), retractions(arm.server.log())
    )
    peak = max((line.pool_tokens for line in lines), default=0)
    page = arm.information()["page_size"]
    bound = args.requests * (args.prompt + args.kv_budget + page)
    config = {**config_of(args), "arm": arm.name}
    together = max((line.running for line in lines), default=0)
    rows.write("outputs that came to their end", [finished], "requests", config, tokens=sum(counts))
    rows.write("retractions", [retracted], "requests", config)
    rows.write(
        "most tokens in the pool",
        [peak],
        "tokens",
        config,
        bound=bound,
        samples=len(lines),
        logical_tokens=max((line.logical_tokens or 0 for line in lines), default=0),
        largest_report=max(info.get("resident_tokens", 0) for info in infos),
    )
    rows.write("requests running at a time", [together], "requests", config)
    rows.write("wall time", [batch.seconds], "s", config)
    rows.write("throughput", [sum(counts) / batch.seconds], "tokens/s", config)
    write_steps(lines, args, rows, config)
    promises = {
        f"all {args.requests} requests generate {args.output} tokens, {finished} did": (
            finished == args.requests
        ),
        f"no request is retracted, {retracted} were": not retracted,
        f"all {args.requests} requests run together, {together} did": together == args.requests,
        f"the pool holds at most {bound} tokens, it held {peak}": 0 < peak <= bound,
    }
    return [promise for promise, kept in promises.items() if not kept]


def write_steps(
    lines: list[DecodeBatch], args: argparse.Namespace, rows: RowFile, config: dict[str, Any]
) -> None:
    """Stores the step time after saturation and at the end, a tenth of the samples each."""
    saturated = args.requests * (args.prompt + args.kv_budget)
    # The first line past it still counts steps from before.
    full = [
        line
        for line in lines
        if line.running == args.requests and (line.logical_tokens or 0) > saturated
    ][1:]
    tenth = max(1, len(full) // 10)
    for name, part in (("first", full[:tenth]), ("last", full[-tenth:])):
        if part:
            rows.write(
                f"decode step in the {name} tenth after saturation",
                [statistics.median(line.step_ms for line in part)],
                "ms",
                config,
                samples=len(part),
                logical_tokens=[part[0].logical_tokens, part[-1].logical_tokens],
            )


def run_in_steady_state(arm: Arm, args: argparse.Namespace, rows: RowFile, deadline: float) -> None:
    """Lets requests at all depths compete for the pool and stores how many run at a time."""
    depths = [args.output * (2 * i + 1) // (2 * args.requests) for i in range(args.requests)]
    random.Random(args.seed).shuffle(depths)
    batch = Batch(
        arm,
        prompts(args, [args.prompt + depth for depth in depths]),
        [args.output - depth for depth in depths],
    )
    batch.answers(min(deadline - SPARE_S, time.monotonic() + args.default_seconds))
    log = arm.server.log()
    # While others wait the pool is full; the first half of the time it was being filled.
    lines = [line for line in decode_batches(log) if line.queued]
    lines = lines[len(lines) // 2 :]
    if not lines:
        raise RuntimeError(
            f"requests of arm {arm.name} must wait for memory while it decodes, none did; "
            "raise --default-seconds or --requests"
        )
    longest = args.prompt + args.output
    rows.write(
        "requests running at a time",
        [line.running for line in lines],
        "requests",
        {**config_of(args), "arm": arm.name},
        most=max(line.running for line in lines),
        pool_tokens=max(line.pool_tokens for line in lines),
        retractions=retractions(log),
        tokens_per_s=statistics.median(line.tokens_per_s for line in lines),
        depths="uniform over the output",
        arithmetic={
            "whole outputs in the pool": args.pool // longest,
            "outputs of mean length in the pool": args.pool // (args.prompt + args.output // 2),
        },
    )


class Batch:
    """Requests in one call that is answered when all have ended, so the client costs nothing.

    Args:
        arm: A started server.
        input_ids: Token ids, one list for each request.
        tokens: How many each request is to generate.
    """

    def __init__(self, arm: Arm, input_ids: list[list[int]], tokens: list[int]) -> None:
        self.seconds = 0.0
        self._arm, self._began = arm, time.monotonic()
        params = [{**endless(arm.model_path), "max_new_tokens": n} for n in tokens]
        self._body = {"input_ids": input_ids, "sampling_params": params}
        self._pool = ThreadPoolExecutor(1)
        self._answers: Future[list[dict[str, Any]]] = self._pool.submit(self._ask)

    def answers(self, deadline: float) -> list[dict[str, Any]]:
        """Waits for the answers; requests that run at the deadline are ended there."""
        done, _ = wait([self._answers], max(0.0, deadline - time.monotonic()))
        if not done:
            say("the time is used up; the requests are ended")
            self._arm.post("/abort_request", abort_all=True)
        try:
            return self._answers.result(timeout=120)
        except Exception:
            say(self._arm.server.log_end(60))
            raise
        finally:
            self._pool.shutdown(wait=False)

    def _ask(self) -> list[dict[str, Any]]:
        response = requests.post(self._arm.server.url + "/generate", json=self._body, timeout=7200)
        self.seconds = time.monotonic() - self._began
        if response.status_code != 200:
            raise RuntimeError(f"the batch must succeed, got {response.text[:2000]}")
        return list(response.json())


def prompts(args: argparse.Namespace, lengths: list[int]) -> list[list[int]]:
    """Prompts of the run's model and seed."""
    return Prompts(model_path_of(args.shape), args.seed).batch(lengths)


def flags_of(args: argparse.Namespace) -> list[str]:
    """The command line that both arms share."""
    chosen = (
        *(("--mem-fraction-static", "0.92") if has_driver() else ()),
        *("--skip-tokenizer-init", "--disable-prefill-cuda-graph"),
        *("--max-running-requests", str(args.requests)),
        *("--decode-log-interval", str(args.log_interval)),
    )
    return server_flags(args, *chosen, pool=args.pool)


def config_of(args: argparse.Namespace) -> dict[str, Any]:
    """What a row says of the run."""
    names = ("shape", "requests", "prompt", "output", "kv_budget", "pool")
    return {name: getattr(args, name) for name in names}


def parse_args() -> argparse.Namespace:
    parser = bench_parser(__doc__)
    add_arms(parser, ("raas", "default"), ["raas"])
    add_requests(parser)
    parser.add_argument("--requests", type=int, default=256, help="sent all at once")
    parser.add_argument("--output", type=int, default=32768, help="tokens that each generates")
    parser.add_argument("--pool", type=int, default=1_000_000, help="tokens of the KV cache")
    parser.add_argument("--log-interval", type=int, default=40, help="decode steps in a sample")
    parser.add_argument("--default-seconds", type=float, default=90.0, help="of arm default")
    return parse(parser, QUICK)


if __name__ == "__main__":
    sys.exit(main())
