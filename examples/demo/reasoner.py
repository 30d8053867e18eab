"""Solves long reasoning problems with dense and RaaS requests in one batch of a real SGLang server.

All problems share a program, so their prompts share a long prefix; they differ in its inputs. The
table shows what each request kept of its KV cache, the last line of stdout is one JSON object.
"""

import argparse
import importlib.metadata
import json
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.server import CPU_FLAGS, CPU_POOL, LocalServer
from examples.demo.console import TOKEN_COUNTS, Progress, prefill, print_aligned, say
from raas_sglang.cpu import cpu_environment
from reasoner.problem import REGIMES, Problem, grade, make_problem

COLUMNS = ("problem", "policy", "budget", "answer", *TOKEN_COUNTS, "time")


@dataclass
class Outcome:
    """What one request came to."""

    index: int
    policy: str
    is_right: bool
    meta_info: dict[str, Any]
    seconds: float

    def broken_bounds(self, budget: int) -> list[str]:
        """Says which bounds of the KV cache this request did not keep."""
        info = self.meta_info
        most = info["prompt_tokens"] + budget if self.policy == "raas" else info["logical_tokens"]
        kept = info["resident_tokens"]
        broken = []
        if kept > most:
            broken.append(f"problem {self.index}: {kept} resident tokens, at most {most} allowed")
        if info["evicted_tokens"] != info["logical_tokens"] - kept:
            broken.append(f"problem {self.index}: logical is not resident plus evicted")
        if self.policy == "dense" and info["evicted_tokens"]:
            broken.append(f"problem {self.index}: a dense request lost tokens")
        if not info["cached_tokens"]:
            broken.append(f"problem {self.index}: the shared prompt was not taken from the cache")
        return broken


def main() -> int:
    args = parse_args()
    problems = [
        make_problem(args.regime, args.lines, args.seed, index) for index in range(args.problems)
    ]
    server = LocalServer(
        [
            *CPU_FLAGS,
            *CPU_POOL,
            *("--kv-policy", "raas", "--kv-budget", str(args.kv_budget)),
            *("--max-running-requests", str(args.problems)),
            "--skip-server-warmup",
        ],
        cpu_environment(),
    )
    say(f"starting: {' '.join(server.command)}\n")
    try:
        server.start(lambda seconds: say(f"\rwaiting for the server: {seconds:.0f} s "))
        say("\n")
        outcomes = solve(server.url, problems, args.kv_budget)
        broken = [line for o in outcomes for line in o.broken_bounds(args.kv_budget)]
        together = max(map(int, re.findall(r"#running-req: (\d+)", server.log())), default=0)
    finally:
        server.stop()
    if together < args.problems:
        broken.append(f"the running batch held {together} requests, not all {args.problems}")
    print_table(outcomes, args.kv_budget)
    for line in broken:
        print(f"BROKEN: {line}")
    print(json.dumps(summary(outcomes, args.kv_budget)))
    return 1 if broken else 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo ARGS=...", description=__doc__)
    parser.add_argument("--problems", type=int, default=8, help="requests, at least 2 (default 8)")
    parser.add_argument("--kv-budget", type=int, default=512, help="L in tokens (default 512)")
    parser.add_argument(
        "--lines",
        type=int,
        default=92,
        help="program lines, 13 tokens each in the chain (default 92)",
    )
    parser.add_argument("--regime", choices=REGIMES, default="milestone")
    parser.add_argument("--seed", type=int, default=1, help="seed of the shared program")
    args = parser.parse_args()
    if args.problems < 2:
        parser.error(f"--problems must be at least 2, one for each policy, got {args.problems}")
    return args


def solve(url: str, problems: list[Problem], budget: int) -> list[Outcome]:
    """Sends all problems at once, every other one to each policy."""
    prefill(url, problems[0].program_text)
    progress = Progress(sum(problem.generated_tokens for problem in problems))

    def ask(index: int) -> Outcome:
        problem, policy = problems[index], ("dense", "raas")[index % 2]
        params = {
            "temperature": 0,
            "max_new_tokens": problem.generated_tokens + 64,
            "stream_interval": 20,
            "custom_params": {"kv_policy": policy, "kv_budget": budget},
        }
        began = time.monotonic()
        last = progress.generate(url, problem.prompt, params)
        verdict = grade(problem, last["text"])
        seconds = time.monotonic() - began
        return Outcome(index, policy, verdict.answer_right, last["meta_info"], seconds)

    with ThreadPoolExecutor(len(problems)) as pool:
        outcomes = list(pool.map(ask, range(len(problems))))
    say("\n")
    return outcomes


def print_table(outcomes: list[Outcome], budget: int) -> None:
    rows = [COLUMNS]
    for o in outcomes:
        info = o.meta_info
        rows.append(
            (
                str(o.index),
                o.policy,
                str(budget) if o.policy == "raas" else "-",
                "right" if o.is_right else "wrong",
                *(str(info[f"{name}_tokens"]) for name in TOKEN_COUNTS),
                f"{o.seconds:.1f} s",
            )
        )
    print_aligned(rows)


def summary(outcomes: list[Outcome], budget: int) -> dict[str, Any]:
    raas = [o for o in outcomes if o.policy == "raas"]
    return {
        "problems": len(outcomes),
        "correct_dense": sum(o.is_right for o in outcomes if o.policy == "dense"),
        "correct_raas": sum(o.is_right for o in raas),
        "kv_policy": "raas",
        "kv_budget": budget,
        "max_resident_tokens": max(o.meta_info["resident_tokens"] for o in raas),
        "evicted_tokens": sum(o.meta_info["evicted_tokens"] for o in outcomes),
        "cached_prompt_tokens": sum(o.meta_info["cached_tokens"] for o in outcomes),
        "sglang_version": importlib.metadata.version("sglang"),
    }


if __name__ == "__main__":
    sys.exit(main())
