"""Online load with SGLang's own `sglang.bench_serving`, in arms that differ in the KV policy.

Requests come as a Poisson process. For each rate: time to first token, time between tokens, and
the goodput, that is requests per second that kept to both targets, each the median of some rounds.
One arm after the other has the GPU for itself, with the same flags, rates, prompts and arrival
times; with --together they take turns.
"""

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness.arms import POLICIES, Arm, groups, started
from benchmarks.harness.cli import (
    add_arms,
    add_requests,
    add_together,
    begin_run,
    bench_parser,
    parse,
    say,
    server_flags,
    within_time,
)
from benchmarks.harness.deadline import OutOfTimeError
from benchmarks.harness.decode_run import Workload
from benchmarks.harness.gate import check_tokens
from benchmarks.harness.rows import RowFile
from benchmarks.harness.shapes import endless, model_path_of
from benchmarks.serving.online_client import NAME, run_client, write_word_tokenizer

RESULTS = (
    ("goodput", "goodput", "requests/s"),
    ("output throughput", "output_throughput", "tokens/s"),
    ("time to first token, median", "median_ttft_ms", "ms"),
    ("time to first token, p99", "p99_ttft_ms", "ms"),
    ("time between tokens, median", "median_itl_ms", "ms"),
    ("time between tokens, p99", "p99_itl_ms", "ms"),
)
# What a minute or two on a CPU can do, with the same code.
QUICK = {
    "shape": "reasoner",
    "arms": ["default", "raas"],
    "together": True,
    "server_flags": "--sleep-on-idle",
    "prompt": 32,
    "output": 96,
    "kv_budget": 64,
    "rates": [4.0],
    "rounds": 1,
    "duration": 4.0,
    "warmup": 1,
    "max_running_requests": 16,
    "max_total_tokens": 8192,
    "stream_interval": 4,
}


def main() -> int:
    args = parse_args()
    deadline, rows = begin_run(args)
    model_path = model_path_of(args.shape)
    load = Workload(args.prompt, args.kv_budget, 32, 1, args.seed, model_path)
    with tempfile.TemporaryDirectory() as folder:
        write_word_tokenizer(model_path, Path(folder))
        flags = flags_of(args, folder)
        arms = [Arm(name, model_path, args.kv_budget, flags) for name in args.arms]
        config = {"shape": args.shape, **load.config()}
        with within_time(args):
            for group in groups(arms, args.together):
                with started(group, say):
                    check_tokens(group, load, rows, config, deadline)
                    for rate in args.rates:
                        measure(group, rate, args, folder, rows, deadline)
    return 0


def measure(
    group: list[Arm],
    rate: float,
    args: argparse.Namespace,
    folder: str,
    rows: RowFile,
    deadline: float,
) -> None:
    """Runs one rate in rounds, arms that are up together in turns, and stores what came of it.

    Raises:
        OutOfTimeError: the time would not do; the rounds before are stored.
        RuntimeError: a request failed, or the benchmark did.
    """
    seen: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in group}
    try:
        for number in range(args.rounds):
            for arm in group:
                if time.monotonic() + args.duration > deadline:
                    raise OutOfTimeError
                seen[arm.name].append(serve(arm, rate, args.seed + number, args, folder))
    finally:
        for arm in group:
            if seen[arm.name]:
                write(arm, rate, seen[arm.name], args, folder, rows)


def write(
    arm: Arm,
    rate: float,
    rounds: list[dict[str, Any]],
    args: argparse.Namespace,
    folder: str,
    rows: RowFile,
) -> None:
    """Stores the rounds of an arm at a rate."""
    names = ("shape", "prompt", "output", "stream_interval", "ttft_ms", "itl_ms")
    config = {name: getattr(args, name) for name in names}
    config |= {"budget": args.kv_budget, "arm": arm.name, "rate": rate}
    details = {name: [seen[name] for seen in rounds] for name in ("duration", "concurrency")}
    details |= {
        "completed": rounds[0]["completed"],
        "benchmark": shlex.join(
            ["python", "-m", NAME, *command("URL", rate, args.seed, args, "TOKENIZER", "FILE")]
        ),
        "flags": ["TOKENIZER" if flag == folder else flag for flag in arm.flags],
    }
    written = [
        rows.write(result, [seen[name] for seen in rounds], unit, config, **details)
        for result, name, unit in RESULTS
    ]
    told = ", ".join(f"{row['result']} {row['value']:.4g}" for row in written)
    say(f"{arm.name}, {rate} requests/s, {len(rounds)} rounds: {told}")


def goodput(
    first: list[float],
    between: list[float],
    most_first: float,
    most_between: float,
    duration: float,
) -> float:
    """Requests per second whose first token and whose mean gap came within the targets.

    Args:
        first: Time to first token of each request, in seconds.
        between: Mean time between two tokens of each request, in seconds.
        most_first: Target of the first, in seconds.
        most_between: Target of the second, in seconds.
        duration: Length of the run, in seconds.
    """
    pairs = zip(first, between, strict=True)
    return sum(a <= most_first and b <= most_between for a, b in pairs) / duration


def serve(
    arm: Arm, rate: float, seed: int, args: argparse.Namespace, folder: str
) -> dict[str, Any]:
    """Runs SGLang's benchmark on an empty cache and returns what it stored, and the goodput.

    Raises:
        RuntimeError: it failed, or a request did.
    """
    arm.clear()
    path = str(Path(folder) / f"{arm.name}-{rate}-{seed}.jsonl")
    run_client(command(arm.server.url, rate, seed, args, folder, path))
    seen = dict(json.loads(Path(path).read_text()))
    failed = [error for error in seen["errors"] if error]
    if failed or seen["completed"] != num_requests(args, rate):
        raise RuntimeError(f"every request of arm {arm.name} must succeed, got {failed[:3]}")
    gaps = [statistics.fmean(request) for request in seen["itls"]]
    targets = args.ttft_ms / 1e3, args.itl_ms / 1e3
    return {**seen, "goodput": goodput(seen["ttfts"], gaps, *targets, seen["duration"])}


def command(
    url: str, rate: float, seed: int, args: argparse.Namespace, folder: str, path: str
) -> list[str]:
    """The command line of SGLang's benchmark for one rate."""
    return [
        *("--backend", "sglang"),
        *("--base-url", url, "--model", folder, "--tokenizer", folder),
        *("--dataset-name", "random-ids", "--tokenize-prompt", "--random-range-ratio", "1.0"),
        *("--random-input-len", str(args.prompt), "--random-output-len", str(args.output)),
        *("--request-rate", str(rate), "--num-prompts", str(num_requests(args, rate))),
        *("--warmup-requests", str(args.warmup), "--seed", str(seed), "--disable-tqdm"),
        *("--output-file", path, "--output-details"),
        *(
            ()
            if endless(model_path_of(args.shape)).get("ignore_eos")
            else ("--disable-ignore-eos",)
        ),
    ]


def num_requests(args: argparse.Namespace, rate: float) -> int:
    """Requests that come in the time of one rate."""
    return max(1, round(rate * args.duration))


def flags_of(args: argparse.Namespace, tokenizer: str) -> list[str]:
    """The command line that all arms share."""
    most = args.max_running_requests
    chosen = (
        *("--tokenizer-path", tokenizer, "--incremental-streaming-output"),
        *("--stream-interval", str(args.stream_interval)),
        *(("--max-running-requests", str(most)) if most else ()),
    )
    return server_flags(args, *chosen, pool=args.max_total_tokens)


def parse_args() -> argparse.Namespace:
    parser = bench_parser(__doc__)
    add_arms(parser, POLICIES, ["default", "off", "raas"])
    add_requests(parser)
    add_together(parser)
    parser.add_argument("--rates", type=float, nargs="+", default=[4.0, 8.0], help="per second")
    parser.add_argument(
        "--rounds", type=int, default=3, help="of each rate, other prompts and arrivals in each"
    )
    parser.add_argument("--duration", type=float, default=30.0, help="seconds of arrivals")
    parser.add_argument("--warmup", type=int, default=8, help="requests before, not counted")
    parser.add_argument("--output", type=int, default=2048, help="tokens of an output")
    parser.add_argument("--ttft-ms", type=float, default=500.0, help="target of the first token")
    parser.add_argument("--itl-ms", type=float, default=25.0, help="target between tokens, mean")
    parser.add_argument("--stream-interval", type=int, default=8, help="tokens in one message")
    parser.add_argument("--max-running-requests", type=int, help="SGLang's choice by default")
    parser.add_argument("--max-total-tokens", type=int, help="pool; what fits by default")
    return parse(parser, QUICK)


if __name__ == "__main__":
    sys.exit(main())
