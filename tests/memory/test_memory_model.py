"""Random operations on everything that owns memory, checked against a model after each of them.

A failure is shrunk to a short list of operations, printed as code that replays it. A long campaign:

    PYTHONPATH=tests python tests/memory/test_memory_model.py --operations 1000000 --seed 7
"""

import argparse
import logging
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

import raas_sglang.cpu

if __name__ == "__main__":  # `conftest.py` does this for pytest
    os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
    sys.path.insert(0, str(Path(raas_sglang.cpu.__file__).parent))

from sglang.srt import runtime_context
from sglang.srt.server_args import ServerArgs

from memory_model import MemoryModel
from raas_patches import installation
from raas_patches.active import attach_config
from raas_sglang.config import RaasConfig
from scheduler_sim import Settings, Simulation

ROOT = next(path for path in Path(__file__).parents if (path / "benchmarks").exists())
MODEL = str(ROOT / "benchmarks" / "reasoner" / "model")
POLICIES = ("dense", "raas", "window", "random", "h2o")
# SGLang's paged allocator is Triton, which decides at import whether it runs on the CPU.
PAGE_SIZE = 16 if os.environ.get("TRITON_INTERPRET") == "1" else 1
OPERATIONS = {1: 20000, 16: 2000}[PAGE_SIZE]
Operation = tuple[str, dict[str, Any]]  # a method of `Simulation` and its arguments
RUN = {1: 1000, 16: 500}[PAGE_SIZE]  # operations on one pool: few enough to shrink


def install_hooks(model_path: str, page_size: int) -> ServerArgs:
    """Publishes arguments for this process and hooks SGLang, as a scheduler process does."""
    server_args = ServerArgs(
        model_path=model_path,
        device="cpu",
        attention_backend="torch_native",
        page_size=page_size,
        pp_max_micro_batch_size=32,
    )
    attach_config(server_args, RaasConfig(kv_policy="raas", kv_budget=64))
    runtime_context.publish(server_args, role="test")
    installation.require_seams()
    return server_args


class Generator:
    """Draws operations that make sense for what runs at the moment."""

    def __init__(self, seed: int) -> None:
        self.seed, self.random = seed, random.Random(seed)
        self.arrived = 0
        self.last_prompt = {"family": 0, "shared": 20, "private": 1, "follows": -1}

    def settings(self) -> Settings:
        draw = self.random
        return Settings(
            PAGE_SIZE,
            slots=draw.choice((320, 480)),
            requests=draw.choice((3, 6)),
            overlap=draw.random() < 0.7,
            score=draw.choice(("bound", "exact")),
            reserve=draw.choice((8, 24, 200)),
            radix=draw.random() < 0.85,
            preempt=draw.random() < 0.25,
            triton=PAGE_SIZE == 16 and self.seed % 4 == 3,
        )

    def operation(self, simulation: Simulation) -> Operation:
        draw, live = self.random, sorted(simulation.requests)
        if len(simulation.scheduler.waiting_queue) < 4 and (not live or draw.random() < 0.05):
            return "arrive", self.arrival(simulation.settings.score)
        if not live or draw.random() < 0.93:
            chunk = draw.choice((0, 0, 16, 17, 32))
            return "step", {"admit": draw.random() < 0.8, "chunk": chunk}
        names = ("finish", "abort", "retract", "evict", "pause", "flush")
        name = draw.choices(names, (4, 2, 5, 4, 1, 1))[0]
        if name == "evict":
            return name, {"tokens": draw.randrange(60)}
        return name, {} if name in ("pause", "flush") else {"number": draw.choice(live)}

    def prompt(self) -> dict[str, int]:
        """A prompt, often the last one again: then the tree knows what comes after it."""
        draw = self.random
        if draw.random() < 0.7:
            self.last_prompt = {
                "family": draw.randrange(3),
                "shared": draw.choice((0, 16, 32, draw.randrange(48), draw.randrange(90))),
                "private": draw.choice((1, 3, 16, draw.randrange(1, 30))),
                "follows": self.arrived - draw.randrange(1, 5) if draw.random() < 0.4 else -1,
            }
        return self.last_prompt

    def arrival(self, score: str) -> dict[str, Any]:
        """A request, often one that stops where its budget is just full or just overwritten."""
        draw, self.arrived = self.random, self.arrived + 1
        budget = draw.choice((16,) * 9 + (32,) * 7 + (64,) * 3 + (24,))  # 24 is refused
        stop_at = draw.choice((1, draw.randrange(1, budget), draw.randrange(1, 5 * budget), 999))
        if draw.random() < 0.3:
            stop_at = budget + draw.randrange(-1, 4)
        limits = (stop_at, budget, budget + 1, 150, 300, draw.randrange(1, 200))
        return {
            "number": self.arrived,
            "policy": draw.choice(POLICIES if score == "exact" else POLICIES[:-1]),
            "budget": budget,
            "max_new": draw.choice(limits),
            "stop_at": stop_at,
            **self.prompt(),
            "priority": draw.randrange(3),
        }


def failure(
    settings: Settings, operations: Sequence[Operation], server_args: ServerArgs
) -> str | None:
    """Replays operations on new objects; returns the name of what went wrong, or None."""
    simulation = Simulation(settings, server_args)
    try:
        for name, arguments in operations:
            simulation.apply(name, **arguments)
    except Exception as error:  # noqa: BLE001 - whatever SGLang raises is a finding
        return name_of(error)
    return None


def name_of(error: Exception) -> str:
    return getattr(error, "invariant", type(error).__name__)


def shrink(
    settings: Settings, operations: list[Operation], name: str, server_args: ServerArgs
) -> list[Operation]:
    """Drops chunks of operations, in halves down to single ones, while the same failure remains."""
    size, deadline = len(operations) // 2, time.monotonic() + 120
    while size and time.monotonic() < deadline:
        start = 0
        while start < len(operations) and time.monotonic() < deadline:
            fewer = operations[:start] + operations[start + size :]
            if failure(settings, fewer, server_args) == name:
                operations = fewer
            else:
                start += size
        size //= 2
    return operations


def campaign(seed: int, server_args: ServerArgs) -> MemoryModel:
    """Runs operations on one new pool; returns the model, which counted what happened."""
    generator, operations = Generator(seed), []
    settings = generator.settings()
    simulation = Simulation(settings, server_args)
    try:
        for _ in range(RUN // 3 if settings.triton else RUN):
            operations.append(generator.operation(simulation))
            name, arguments = operations[-1]
            simulation.apply(name, **arguments)
    except Exception as error:  # noqa: BLE001 - raised again, with how to replay it
        fewer = shrink(settings, operations, name_of(error), server_args)
        explain(seed, settings, fewer, error)
    return simulation.model


def explain(
    seed: int, settings: Settings, operations: list[Operation], error: Exception
) -> NoReturn:
    """Fails with code that replays the operations."""
    lines = [f"seed {seed}: {type(error).__name__}: {error}", ""]
    lines += [f"simulation = Simulation({settings!r}, install_hooks(MODEL, PAGE_SIZE))"]
    for name, arguments in operations:
        listed = "".join(f", {key}={value!r}" for key, value in arguments.items())
        lines.append(f'simulation.apply("{name}"{listed})')
    raise AssertionError("\n".join(lines)) from error


@pytest.fixture(scope="module")
def server_args() -> Iterator[ServerArgs]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are tiny
    yield install_hooks(MODEL, PAGE_SIZE)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("seed", range(OPERATIONS // RUN), ids=f"page{PAGE_SIZE}-seed{{}}".format)
def test_random_operations_keep_the_invariants(seed: int, server_args: ServerArgs) -> None:
    seen = campaign(seed, server_args)
    assert seen.overwrites > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--operations", type=int, default=OPERATIONS)
    parser.add_argument("--seed", type=int, default=0, help="first seed; each run takes the next")
    args = parser.parse_args()
    server_args, start, done = install_hooks(MODEL, PAGE_SIZE), time.monotonic(), 0
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    for seed in range(args.seed, args.seed + -(-args.operations // RUN)):
        seen = campaign(seed, server_args)
        done += RUN
        rate = done / (time.monotonic() - start)
        sys.stdout.write(
            f"seed {seed}: {seen.overwrites} overwrites, {seen.resumptions} resumptions, "
            f"{done} operations, {rate:.0f}/s\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
