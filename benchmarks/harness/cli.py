"""What the command lines of the benchmarks have in common, down to the flags of their servers."""

import argparse
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness.deadline import OutOfTimeError
from benchmarks.harness.rows import RowFile
from benchmarks.harness.shapes import SHAPES

# Requests and answers are token ids, and a message has the new ones alone.
BY_TOKENS = ("--skip-tokenizer-init", "--incremental-streaming-output")


def bench_parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the flags that every benchmark has; `parse` reads them.

    Args:
        description: Shown as it stands: the docstring of the script.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3600.0, help="stops after so long")
    parser.add_argument("--server-flags", default="", help="further flags of all servers, one text")
    parser.add_argument("--commit", help="commit that is measured, where git is not at hand")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines to append to")
    parser.add_argument("--quick", action="store_true", help="the bundled reasoner, a small run")
    return parser


def add_arms(
    parser: argparse.ArgumentParser, choices: Iterable[str], default: Iterable[str]
) -> None:
    """Adds the model's shape, and the arms to compare."""
    shapes = ["reasoner", *sorted(path.name for path in SHAPES.iterdir())]
    parser.add_argument("--shape", choices=shapes, default="qwen2.5-7b")
    parser.add_argument("--arms", nargs="+", choices=tuple(choices), default=list(default))


def add_requests(parser: argparse.ArgumentParser, prompt: int = 256) -> None:
    """Adds what a request is: its prompt and its budget."""
    parser.add_argument("--prompt", type=int, default=prompt, help="tokens of a prompt")
    parser.add_argument("--kv-budget", type=int, default=1024, help="L in tokens")


def add_together(parser: argparse.ArgumentParser) -> None:
    """Adds the choice of a benchmark whose arms have the GPU for themselves otherwise."""
    parser.add_argument(
        "--together",
        action="store_true",
        help="start all arms at once, where their pools fit beside each other (--max-total-tokens)",
    )


def parse(parser: argparse.ArgumentParser, quick: Mapping[str, Any]) -> argparse.Namespace:
    """Reads the command line; with --quick other values are the defaults."""
    if parser.parse_known_args()[0].quick:
        parser.set_defaults(**quick)
    return parser.parse_args()


def begin_run(args: argparse.Namespace) -> tuple[float, RowFile]:
    """Begins a run; one that is ended from outside still stops its servers.

    Returns:
        The `time.monotonic` at which --seconds are used up, and where results go.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    return time.monotonic() + args.seconds, RowFile(args.out, args.seed, args.commit)


@contextmanager
def within_time(args: argparse.Namespace) -> Iterator[None]:
    """Ends what is inside when the run's time is used up, and says so."""
    try:
        yield
    except OutOfTimeError:
        say(f"{args.seconds} s are used up; {args.out} holds what was measured")


def server_flags(
    args: argparse.Namespace, *chosen: str, pool: int | None = None, is_shared: bool = False
) -> list[str]:
    """The command line of a server but for its policy.

    Args:
        args: The command line of the benchmark, whose --server-flags win.
        *chosen: What the benchmark chooses.
        pool: Tokens of the KV cache; what fits if not given.
        is_shared: Whether other servers are started on the device meanwhile.
    """
    return [
        *weight_flags(args.shape),
        # Servers that share a device see each other's memory as taken while they size their pools.
        *(("--mem-fraction-static", "0.92") if is_shared else ()),
        *("--random-seed", str(args.seed), "--skip-server-warmup"),
        *chosen,
        *(("--max-total-tokens", str(pool)) if pool else ()),
        *shlex.split(args.server_flags),
    ]


def weight_flags(shape: str) -> tuple[str, ...]:
    """Server flags: the reasoner has weights, any other shape is filled with dummy ones."""
    return () if shape == "reasoner" else ("--load-format", "dummy")


def at_once_flags(requests: int) -> tuple[str, ...]:
    """Server flags: so many requests run at once, however their prompts are prefilled.

    One more than that, because SGLang counts a request twice while its prompt is in chunks.
    """
    return "--max-running-requests", str(requests + 1)


def flag_number(flags: Sequence[str], *names: str) -> int | None:
    """The number that a server is given with a flag, under any of its names; the last counts."""
    value = flag_value(flags, *names)
    return None if value is None else int(value)


def flag_value(flags: Sequence[str], *names: str) -> str | None:
    """What a server is given with a flag, likewise."""
    given = rf"(?:{'|'.join(map(re.escape, names))})[ =](\S+)"
    values: list[str] = re.findall(given, " ".join(flags))
    return values[-1] if values else None


def quantised_cache(flags: Sequence[str]) -> str | None:
    """How the KV cache of a server is quantised; None if it is not."""
    dtype = flag_value(flags, "--kv-cache-dtype")
    return None if dtype in ("auto", "bf16", "bfloat16") else dtype


def say(text: str) -> None:
    """Reports progress."""
    print(text, file=sys.stderr, flush=True)
