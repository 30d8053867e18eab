"""A long campaign of the random memory test on every core, kept as a row.

    PYTHONPATH=tests:. python tests/memory_campaign.py --operations 1000000 --out ROWS

Every seed is a pool of its own (`tests/memory/test_memory_model.py`), so processes share nothing.
It runs on any machine: GPUs are hidden, and SGLang's CPU engine is used. The first failure ends it
and is printed as code that replays it.
"""

import argparse
import functools
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import raas_sglang.cpu
from benchmarks.harness.rows import RowFile

TESTS = Path(__file__).parent


class Outcome(NamedTuple):
    """What one seed came to: how often what happened, and the code that replays a failure."""

    counts: Counter[str]
    failure: str | None


def one_seed(seed: int) -> Outcome:
    """Runs one seed, in a process of the pool. SGLang is imported there alone."""
    from test_memory_model import campaign

    try:
        return Outcome(campaign(seed, hooked()), None)
    except AssertionError as failure:
        return Outcome(Counter(), str(failure))


@functools.cache
def hooked() -> Any:
    """Hooks SGLang in this process, once; returns its server arguments."""
    import torch

    from memory_hooks import MODEL, PAGE_SIZE, install_hooks

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    return install_hooks(MODEL, PAGE_SIZE)


def main() -> int:
    args = parse_args()
    rows = RowFile(args.out, args.seed, args.commit)
    # The processes inherit it before they import SGLang, torch and Triton.
    os.environ |= {"SGLANG_USE_CPU_ENGINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    if args.page_size > 1:
        os.environ["TRITON_INTERPRET"] = "1"
    sys.path[:0] = [str(Path(raas_sglang.cpu.__file__).parent), str(TESTS / "memory")]
    counts, failure, start = Counter[str](), None, time.monotonic()
    # More seeds than can be needed: a run has at least 166 operations.
    seeds = range(args.seed, args.seed + args.operations // 100 + 1)
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        for outcome in pool.imap_unordered(one_seed, seeds):
            counts.update(outcome.counts)
            failure, seconds = outcome.failure, time.monotonic() - start
            rate = counts["operations"] / seconds
            print(f"{dict(counts)}, {rate:.0f} operations/s", flush=True)
            if failure or counts["operations"] >= args.operations or seconds > args.seconds:
                break
    rows.write(
        "random operations on the scheduler's memory",
        [counts["operations"]],
        "operations",
        {"page_size": args.page_size, "processes": args.processes},
        happened=counts,
        seconds=seconds,
        operations_per_s=rate,
        failure=failure,
    )
    if failure:
        print(failure)
    return 1 if failure or counts["operations"] < args.operations else 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--operations", type=int, default=1_000_000, help="at least so many")
    parser.add_argument("--page-size", type=int, choices=(1, 16), default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0, help="first seed; each run takes the next")
    parser.add_argument("--seconds", type=float, default=3600.0, help="stops after so long")
    parser.add_argument("--commit", help="commit that is tested, where git is not at hand")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines to append to")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
