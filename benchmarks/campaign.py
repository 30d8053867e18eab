"""Every comparison with the default runtime, one after the other on one GPU.

    python -m benchmarks.campaign --out out/campaign     # at most 190 minutes

A step is one benchmark with its arguments. Its rows are appended to the file of its kind in --out,
and what it said stands in a log beside them. A step that came to its end, or used up its time, is
noted there, so the same command goes on where an interrupted one stopped; --only picks steps. Rows
are shown in the documents once they are appended to those in benchmarks/results.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness.cli import say
from benchmarks.harness.rows import commit_of_checkout

ROOT = Path(__file__).parents[1]
TOGETHER = "'--server-flags=--chunked-prefill-size 2048'"  # prefills of arms that share a GPU


class Step(NamedTuple):
    """One benchmark.

    Attributes:
        command: Module in this package and arguments, without the file of rows and the commit.
        rows: Name of its file of rows, as in benchmarks/results.
        seconds: After which it is ended, with what it has; None of one that takes a minute.
    """

    command: str
    rows: str
    seconds: int | None


STEPS = {
    "ops": Step("ops.eviction --shape 7B --budget 1024 --batch 1 64 256 --repeats 5", "ops", None),
    "ops-fp8": Step(
        "ops.eviction --shape 7B --budget 1024 --batch 1 64 256 --repeats 5 "
        "--kv-cache-dtype fp8_e4m3",
        "ops",
        None,
    ),
    "attention": Step("ops.attention --repeats 5", "ops", None),
    "decode": Step(
        f"serving.decode --arms default off raas --batches 64 16 1 {TOGETHER}", "decode", 300
    ),
    "decode-large": Step(f"serving.decode --batches 256 128 {TOGETHER}", "decode", 240),
    "decode-1.5b": Step(
        "serving.decode --shape qwen2.5-1.5b --arms default off raas --rounds 9 "
        f"--batches 1 16 64 128 256 {TOGETHER}",
        "decode",
        300,
    ),
    "length": Step(
        f"serving.decode --batches 16 64 --logical 32768 8192 --prefilled {TOGETHER}",
        "decode",
        600,
    ),
    "length-1.5b": Step(
        "serving.decode --shape qwen2.5-1.5b --arms raas --batches 1 --logical 130048 --window 64",
        "decode",
        480,
    ),
    "throughput": Step(
        "serving.throughput --kv-budgets 1024 --outputs 32768 16384 8192 4096 2048 1024",
        "throughput",
        1800,
    ),
    "throughput-budgets": Step(
        "serving.throughput --arms raas --kv-budgets 512 2048 --outputs 32768 8192",
        "throughput",
        480,
    ),
    "throughput-fp8": Step(
        "serving.throughput --arms default raas --kv-budgets 1024 --outputs 32768 8192 "
        "'--server-flags=--kv-cache-dtype fp8_e4m3 --attention-backend flashinfer'",
        "throughput",
        900,
    ),
    "throughput-whole": Step(
        "serving.throughput --shape qwen2.5-1.5b --arms default raas --outputs 2048 "
        "--kv-budgets 256 --max-total-tokens 100000 --max-running-requests 192 --together "
        "--warmup 1000 --states steady full",
        "throughput",
        420,
    ),
    "throughput-full": Step(
        "serving.throughput --arms raas default --kv-budgets 1024 --outputs 8192 --queues full "
        "--states full",
        "throughput",
        1260,
    ),
    "serving": Step(
        "serving.online --arms default raas --rounds 5 --together --max-total-tokens 380000 "
        "'--server-flags=--mem-fraction-static 0.92 --chunked-prefill-size 2048'",
        "serving",
        1200,
    ),
    "prefix": Step(f"serving.prefix --rounds 5 {TOGETHER}", "prefix", 360),
    "profile": Step(f"serving.profile --batches 64 256 {TOGETHER}", "profile", 240),
    "memory": Step("serving.memory --arms default raas", "memory", 420),
    "long-outputs": Step(
        "serving.long_outputs --server-flags=--context-length=131072", "long_outputs", 720
    ),
    "soak": Step("serving.soak", "soak", 1200),
}


def main() -> int:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    failed = [name for name in args.only if not is_done(name, args) and not run(name, args)]
    for name in failed:
        say(f"{name} did not come to its end; {log_path(name, args)} says why")
    return int(bool(failed))


def run(name: str, args: argparse.Namespace) -> bool:
    """Runs one step and says whether it came to its end."""
    began = time.monotonic()
    say(f"{name}: {STEPS[name].command}")
    with log_path(name, args).open("a") as log:
        code = subprocess.run(
            [sys.executable, *command(STEPS[name], args.out, args.commit)],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            check=False,
        ).returncode
    say(f"{name} ended with {code} after {time.monotonic() - began:.0f} s")
    if code == 0:
        done_path(name, args).touch()
    return code == 0


def command(step: Step, out: Path, commit: str) -> list[str]:
    """Python's arguments for a step."""
    module, *arguments = shlex.split(step.command)
    limit = ["--seconds", str(step.seconds)] if step.seconds else []
    # From the repository's root, where it runs: rows keep the command.
    rows = os.path.relpath(out / f"{step.rows}.jsonl", ROOT)
    return ["-m", f"benchmarks.{module}", *arguments, *limit, "--commit", commit, "--out", rows]


def is_done(name: str, args: argparse.Namespace) -> bool:
    """Whether a step came to its end before."""
    return done_path(name, args).exists()


def done_path(name: str, args: argparse.Namespace) -> Path:
    """What notes that a step came to its end."""
    return Path(args.out / f"{name}.done")


def log_path(name: str, args: argparse.Namespace) -> Path:
    """What a step said."""
    return Path(args.out / f"{name}.log")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of rows and logs")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), help="steps")
    parser.add_argument("--commit", help="commit that is measured, where git is not at hand")
    args = parser.parse_args()
    args.commit = args.commit or commit_of_checkout()
    return args


if __name__ == "__main__":
    sys.exit(main())
