"""Mixed requests against one small pool for minutes: nothing leaks, and no answer changes.

First every request of a catalogue runs alone, twice: from an empty radix tree, and with its prompt
in the tree. Then clients send them all over and over in random order, so that policies and budgets
mix, prompts share prefixes, the pool is too small for all, and dense requests outgrow what is
reserved for them; some clients disconnect or abort in the middle. The server computes
independently of the batch, so a request that was not retracted must answer, word for word, what it
answered alone. A retracted dense one is computed again in larger pieces, which may round
differently; it must still be the right chain. Anything else is a wrong answer. SGLang's strict
memory checks are on all the time and end the server at the first slot that is lost.

How fast that is depends on the host, which is not equal to itself for ten minutes. So in the end a
fresh server is started beside the old one, and as many clients ask each for the same requests in
the same order. The two decode in turns of some seconds, one paused while the other runs: what is
left of the host's moods meets both.
"""

import argparse
import shlex
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle
from statistics import harmonic_mean
from typing import Any

from benchmarks.harness.arms import Arm, started
from benchmarks.harness.cli import begin_run, bench_parser, parse, say
from benchmarks.harness.rows import RowFile
from benchmarks.harness.server import STRICT
from benchmarks.serving.catalogue import Entry, make_catalogue
from benchmarks.serving.crowd import Dealer, Outcome, deal_whole, run_crowd, throughput
from raas_sglang.cpu import has_driver
from reasoner import REASONER

SPARE_S = 90.0  # for a fresh server and the end of both
TURN_S = 3.0  # of one of two servers that are compared
TENTHS = 10
WARM_UP = 0.05  # of the time: the clients begin together and have to spread first
# What admission expects of a dense request, in tokens: less than it takes, so memory runs out.
EXPECTED_TOKENS = "16"
QUICK = {
    "minutes": 1.0,
    "turns": 3,
    "clients": 6,
    "lines": [5, 8],
    "budgets": [32, 160],
    "pool": 260,
}


def main() -> int:
    args = parse_args()
    deadline, rows = begin_run(args)
    latest = deadline - 2 * args.turns * TURN_S - SPARE_S
    catalogue = make_catalogue(args.lines, args.budgets, args.seed)
    arm, fresh = new_arm(args), new_arm(args)
    with started([arm], say):
        alone = run_alone(arm, catalogue)
        begin = time.monotonic()
        end = min(begin + 60 * args.minutes, latest)
        try:
            outcomes = run_crowd(arm, Dealer(catalogue, args.seed, end).deal, args.clients)
        except Exception:
            say(arm.server.log_end(60))
            raise
        arm.clear()
        config = {name: getattr(args, name) for name in ("clients", "lines", "budgets", "pool")}
        config |= {
            "radix cache": not arm.information()["disable_radix_cache"],
            "alone": alone,
            "seconds": round(end - begin),
            "flags": arm.flags,
        }
        # Stored before the comparison, which may be cut off.
        span = (begin + WARM_UP * (end - begin), end)
        broken = write(outcomes, arm.server.used_tokens(), span, rows, config)
        with started([fresh], say):
            speeds = run_in_turns([arm, fresh], catalogue, args)
        write_turns(speeds, rows, config)
        is_alive = arm.server.is_alive()
    if not is_alive:
        broken.append("the server must live to the end")
    for line in broken:
        say(f"BROKEN: {line}")
    return 1 if broken else 0


def run_alone(arm: Arm, catalogue: list[Entry]) -> dict[str, int]:
    """Notes what each request answers with nobody beside it; returns what a row says of that."""
    arm.clear()
    for _ in range(2):
        for entry in catalogue:
            entry.quiet.append(arm.post("/generate", **entry.body()).json()["text"])
    counts = {
        "requests": len(catalogue),
        "that keep all": sum(entry.keeps_all for entry in catalogue),
        "and are solved": sum(e.keeps_all and all(map(e.is_solved, e.quiet)) for e in catalogue),
        "changed by the radix tree": sum(len(set(entry.quiet)) > 1 for entry in catalogue),
    }
    say(f"alone: {counts}")
    return counts


def run_in_turns(
    arms: list[Arm], catalogue: list[Entry], args: argparse.Namespace
) -> list[list[float]]:
    """Lets clients ask both arms, which take turns; returns tokens/s of each turn, arm by arm.

    Raises:
        RuntimeError: an answer is wrong.
    """
    is_over, speeds = threading.Event(), {arm: [] for arm in arms}
    for arm in arms:  # what is fresh fills its radix tree
        run_crowd(arm, partial(deal_whole, enumerate(catalogue), is_over), args.clients)
        arm.pause()
    with ThreadPoolExecutor(len(arms)) as pool:
        deals = [partial(deal_whole, enumerate(cycle(catalogue)), is_over) for _ in arms]
        crowds = [
            pool.submit(run_crowd, arm, deal, args.clients)
            for arm, deal in zip(arms, deals, strict=True)
        ]
        try:
            for number in range(args.turns):
                for arm in arms if number % 2 else reversed(arms):
                    speeds[arm].append(take_turn(arm))
        finally:
            is_over.set()
            for arm in arms:
                arm.resume()
        wrong = [o.entry.name for crowd in crowds for o in crowd.result() if o.verdict == "wrong"]
    if wrong:
        raise RuntimeError(f"all answers must be as alone, got others of {wrong}")
    return list(speeds.values())


def take_turn(arm: Arm) -> float:
    """Lets a paused arm run for a while; returns its tokens/s."""
    mark = arm.log_size()
    arm.resume()
    time.sleep(TURN_S)
    arm.pause()
    # The first line counts the pause before it.
    speeds = [batch.tokens_per_s for batch in arm.decode_batches(mark)[1:]]
    if not speeds:
        raise RuntimeError(f"a turn must log two decode batches at least, got fewer in {TURN_S} s")
    return harmonic_mean(speeds)


def write(
    outcomes: list[Outcome],
    held: int,
    span: tuple[float, float],
    rows: RowFile,
    config: dict[str, Any],
) -> list[str]:
    """Stores what happened and returns which promises broke."""
    verdicts = Counter(f"{outcome.entry.policy}, {outcome.verdict}" for outcome in outcomes)
    wrong = [outcome for outcome in outcomes if outcome.verdict == "wrong"]
    # A request that was not retracted must answer in the same words.
    moved = [o for o in outcomes if o.verdict == "right" and not o.retractions]
    lost = [o for o in outcomes if o.entry.policy != "dense" and o.retractions]
    endings = Counter(outcome.ending for outcome in outcomes)
    answers = {"verdicts": verdicts, "endings": endings}
    rows.write("answers", [len(outcomes)], "requests", config, **answers)
    examples = [f"{o.entry.name}, {o.ending}" for o in wrong[:10]]
    rows.write("wrong answers", [len(wrong)], "requests", config, examples=examples)
    rows.write("right answers in other words, never retracted", [len(moved)], "requests", config)
    rows.write("evicting requests retracted", [len(lost)], "requests", config)
    dense = sum(o.retractions for o in outcomes if o.entry.policy == "dense")
    rows.write("retractions of dense requests", [dense], "retractions", config)
    rows.write("tokens in the pool after the end", [held], "tokens", config)
    begin, length = span[0], (span[1] - span[0]) / TENTHS
    speeds = [
        throughput(outcomes, begin + i * length, begin + (i + 1) * length) for i in range(TENTHS)
    ]
    change = speeds[-1] / speeds[0] - 1
    rows.write("throughput in each tenth", speeds, "tokens/s", config, last_over_first=1 + change)
    say(f"{len(outcomes)} answers, {dict(verdicts)}, {dense} retractions of dense requests")
    say(f"throughput {[round(s) for s in speeds]} tokens/s, last tenth {100 * change:+.1f} %")
    promises = {
        f"no answer is wrong, {len(wrong)} are: {examples}": not wrong,
        f"no evicting request is retracted, {len(lost)} were": not lost,
        f"the pool is whole at the end, {held} tokens are missing": not held,
    }
    return [promise for promise, kept in promises.items() if not kept]


def write_turns(speeds: list[list[float]], rows: RowFile, config: dict[str, Any]) -> None:
    """Stores how fast the old server is beside a fresh one."""
    old, fresh = speeds
    ratios = [ours / theirs for ours, theirs in zip(old, fresh, strict=True)]
    about = {"old": old, "fresh": fresh}
    row = rows.write("throughput beside a fresh server", ratios, "old / fresh", config, **about)
    low, high = row["spread"]
    say(f"throughput beside a fresh server: {row['value']:.3f} ({low:.3f} to {high:.3f})")


def new_arm(args: argparse.Namespace) -> Arm:
    """A server that is not started yet."""
    arm = Arm("raas", REASONER, min(args.budgets), server_flags(args))
    arm.server.environment |= {**STRICT, "SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION": EXPECTED_TOKENS}
    return arm


def server_flags(args: argparse.Namespace) -> list[str]:
    """The command line of the server."""
    on_gpu = (
        *("--enable-deterministic-inference", "--mem-fraction-static", "0.5"),
        *("--disable-prefill-cuda-graph", "--cuda-graph-max-bs-decode", str(args.clients)),
    )
    return [
        *(on_gpu if has_driver() else ()),
        *("--kv-max-budget", str(max(args.budgets)), "--skip-server-warmup", "--sleep-on-idle"),
        *("--max-running-requests", str(args.clients), "--max-total-tokens", str(args.pool)),
        *shlex.split(args.server_flags),
    ]


def parse_args() -> argparse.Namespace:
    parser = bench_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of the crowd")
    parser.add_argument(
        "--turns", type=int, default=24, help=f"of {TURN_S:g} s of each of two servers"
    )
    parser.add_argument("--clients", type=int, default=64, help="requests at the same time")
    parser.add_argument("--lines", type=int, nargs="+", default=[12, 36], help="of the programs")
    parser.add_argument(
        "--budgets", type=int, nargs="+", default=[64, 128, 1024], help="of raas, in tokens"
    )
    parser.add_argument("--pool", type=int, default=8000, help="tokens of the KV cache")
    return parse(parser, QUICK)


if __name__ == "__main__":
    sys.exit(main())
