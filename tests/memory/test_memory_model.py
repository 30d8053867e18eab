"""Random operations on everything that owns memory, checked against a model after each of them.

A failure is shrunk to a short list of operations, printed as code that replays it. For a long
campaign there is `tests/memory_campaign.py`.
"""

import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NoReturn

import pytest
from sglang.srt.server_args import ServerArgs

from memory_hooks import PAGE_SIZE
from raas_sglang.policies import POLICIES
from scheduler_sim import Settings, Simulation

OPERATIONS = {1: 12000, 16: 2000}[PAGE_SIZE]
Operation = tuple[str, dict[str, Any]]  # a method of `Simulation` and its arguments
RUN = {1: 1000, 16: 500}[PAGE_SIZE]  # operations on one pool: few enough to shrink


class Generator:
    """Draws operations that make sense for what runs at the moment."""

    def __init__(self, seed: int) -> None:
        self.seed, self.random = seed, random.Random(seed)
        self.arrived = 0
        self.rush = self.random.choice((0.05, 0.25))
        # Dense requests outgrow what is reserved for them; in a crowd of them memory runs out.
        crowd = ("dense", "dense", "dense", "raas", "raas-paper")
        self.policies = self.random.choice((tuple(POLICIES), crowd))
        self.last_prompt = {"family": 0, "shared": 20, "private": 1, "follows": -1}

    def settings(self) -> Settings:
        draw = self.random
        return Settings(
            PAGE_SIZE,
            slots=draw.choice((112, 208, 320, 480)),
            requests=draw.choice((3, 6, 10)),
            overlap=draw.random() < 0.7,
            reserve=draw.choice((8, 24, 200)),
            radix=draw.random() < 0.85,
            preempt=draw.random() < 0.25,
            triton=PAGE_SIZE == 16 and self.seed % 4 == 3,
        )

    def operation(self, simulation: Simulation) -> Operation:
        draw, live = self.random, sorted(simulation.requests)
        if len(simulation.scheduler.waiting_queue) < 4 and (not live or draw.random() < self.rush):
            return "arrive", self.arrival()
        if not live or draw.random() < 0.93:
            chunk = draw.choice((0, 0, 16, 17, 32))
            return "step", {"admit": draw.random() < 0.8, "chunk": chunk}
        names = ("finish", "abort", "retract", "evict", "pause", "flush")
        name = draw.choices(names, (4, 2, 5, 4, 1, 1))[0]
        if name == "evict":
            return name, {"tokens": draw.randrange(60)}
        if name == "pause":
            return name, {"flush": draw.random() < 0.5}
        return name, {} if name == "flush" else {"number": draw.choice(live)}

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

    def arrival(self) -> dict[str, Any]:
        """A request, often one that stops where its budget is just full or just overwritten."""
        draw, self.arrived = self.random, self.arrived + 1
        budget = draw.choice((16,) * 9 + (32,) * 7 + (64,) * 3 + (80, 24))  # 24 is refused
        stop_at = draw.choice((1, draw.randrange(1, budget), draw.randrange(1, 5 * budget), 999))
        if draw.random() < 0.3:
            stop_at = budget + draw.randrange(-1, 4)
        limits = (stop_at, budget, budget + 1, 150, 300, 900, draw.randrange(1, 200))
        if budget == 80:  # above the largest, and refused unless all of the output fits into it
            limits, stop_at = (budget, budget, budget + 1), 999
        return {
            "number": self.arrived,
            "policy": draw.choice(self.policies),
            "budget": budget,
            "max_new": draw.choice(limits),
            "stop_at": stop_at,
            **self.prompt(),
            "priority": draw.randrange(3),
            "ignore_eos": draw.random() < 0.2,
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


def campaign(seed: int, server_args: ServerArgs) -> Counter[str]:
    """Runs operations on one new pool; returns how often what happened."""
    generator, operations = Generator(seed), []
    settings = generator.settings()
    simulation = Simulation(settings, server_args)
    try:
        for left in reversed(range(RUN // 3 if settings.triton else RUN)):
            operations.append(generator.operation(simulation) if left else ("drain", {}))
            name, arguments = operations[-1]
            simulation.apply(name, **arguments)
    except Exception as error:  # noqa: BLE001 - raised again, with how to replay it
        fewer = shrink(settings, operations, name_of(error), server_args)
        explain(seed, settings, fewer, error)
    model = simulation.model
    simulation.counts.update(
        operations=len(operations), overwritten=model.overwrites, resumed=model.resumptions
    )
    return simulation.counts


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


@pytest.mark.parametrize("seed", range(OPERATIONS // RUN), ids=f"page{PAGE_SIZE}-seed{{}}".format)
def test_random_operations_keep_the_invariants(seed: int, server_args: ServerArgs) -> None:
    assert campaign(seed, server_args)["overwritten"] > 0
