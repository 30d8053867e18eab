"""The reasoner's answers on the CPU engine, stored for the tests on a GPU to compare with.

    PYTHONPATH=. .venv/bin/python tests/cpu_run.py

writes `tests/gpu/data/cpu_run.json`: how many problems each policy solved, and for the first few
problems every token with the steps at which the two likeliest tokens were close.
"""

import importlib.metadata
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.harness.server import CPU_FLAGS, CPU_POOL, LocalServer
from client import generate, problem, together
from raas_sglang.cpu import cpu_environment
from reasoner.problem import Problem, grade

PATH = Path(__file__).parent / "gpu" / "data" / "cpu_run.json"
LINES = 46  # 602 generated tokens
MARGINS_BELOW = 4.0  # nats; wider margins are not stored
CONCURRENT = 32
# Logits of 8 to 32 leave the output layer in bfloat16 in steps of 1/16 to 1/8, and two of them make
# a margin, on both machines. Within four such steps, in nats, either token is right.
TIE = 0.5
# Policy, budget, problems to solve, problems whose tokens are stored.
CHOICES = [
    ("dense", None, 32, 6),
    ("window", 256, 32, 6),
    ("raas", 96, 128, 6),
    ("raas", 256, 128, 6),
]


@dataclass(frozen=True)
class Trace:
    """One greedy answer.

    Attributes:
        seed: Seed of the problem.
        output_ids: Generated tokens.
        narrow_margins: Step and difference of the two largest log-probabilities, in nats, where it
            is below ``MARGINS_BELOW``.
    """

    seed: int
    output_ids: list[int]
    narrow_margins: list[tuple[int, float]]

    def margin(self, step: int) -> float:
        """Difference of the two largest log-probabilities at a step; at least what is stored."""
        return dict(self.narrow_margins).get(step, MARGINS_BELOW)

    def agreement(self, output_ids: list[int]) -> int:
        """Number of tokens before the first that differs."""
        pairs = zip(self.output_ids, output_ids, strict=False)
        same = min(len(self.output_ids), len(output_ids))
        return next((step for step, (a, b) in enumerate(pairs) if a != b), same)


@dataclass(frozen=True)
class Run:
    """What one policy came to: ``right`` of ``total`` answers, and the first few in full."""

    policy: str
    budget: int | None
    right: int
    total: int
    traces: list[Trace]


def asked_problem(seed: int) -> Problem:
    return problem(LINES, seed)


def solve(server, policy: str, budget: int | None, seeds, **extra) -> list[dict]:
    """Answers to the problems of ``seeds``, all asked at the same time."""
    asked = [asked_problem(seed) for seed in seeds]
    tokens = asked[0].generated_tokens + 64
    return together(
        [
            lambda one=one: generate(server, one.prompt, policy, budget, tokens, **extra)
            for one in asked
        ]
    )


def count_right(answers: list[dict]) -> int:
    """Answers that end right, to the problems of seeds 0, 1, ..."""
    verdicts = [grade(asked_problem(seed), answer["text"]) for seed, answer in enumerate(answers)]
    return sum(verdict.answer_right for verdict in verdicts)


def departures(server, run: Run) -> list[tuple[int, float]]:
    """Step at which an answer leaves the stored one and the margin there, for those that do."""
    answers = solve(server, run.policy, run.budget, [trace.seed for trace in run.traces])
    steps = [
        (trace, trace.agreement(answer["output_ids"]))
        for trace, answer in zip(run.traces, answers, strict=True)
    ]
    return [(step, trace.margin(step)) for trace, step in steps if step < len(trace.output_ids)]


def load_runs() -> list[Run]:
    """Reads the stored answers."""
    runs = json.loads(PATH.read_text())["runs"]
    return [Run(**{**run, "traces": [Trace(**trace) for trace in run["traces"]]}) for run in runs]


def trace_of(seed: int, answer: dict) -> Trace:
    margins = [pair[0][0] - pair[1][0] for pair in answer["meta_info"]["output_top_logprobs"]]
    narrow = [(step, round(m, 3)) for step, m in enumerate(margins) if m < MARGINS_BELOW]
    return Trace(seed, answer["output_ids"], narrow)


def make_run(server, policy: str, budget: int | None, total: int, traced: int) -> Run:
    answers: list[dict] = []
    for first in range(0, total, CONCURRENT):
        seeds = range(first, min(first + CONCURRENT, total))
        answers += solve(server, policy, budget, seeds, return_logprob=True, top_logprobs_num=2)
    traces = [trace_of(seed, answer) for seed, answer in enumerate(answers[:traced])]
    return Run(policy, budget, count_right(answers), total, traces)


def main() -> None:
    flags = ["--kv-policy", "raas", "--kv-budget", "256", "--kv-max-budget", "512"]
    room = ["--max-running-requests", str(CONCURRENT), *CPU_POOL]
    with LocalServer([*CPU_FLAGS, *flags, *room, "--skip-server-warmup"], cpu_environment()) as one:
        runs = [asdict(make_run(one, *choice)) for choice in CHOICES]
    versions = {name: importlib.metadata.version(name) for name in ("sglang", "torch")}
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(json.dumps({"lines": LINES, "dtype": "bfloat16", **versions, "runs": runs}))


if __name__ == "__main__":
    main()
