"""What the server was started with: the flags, their defaults and what each must hold."""

import argparse
import re
from dataclasses import dataclass, field, fields
from typing import Any

from raas_kernels.layout import BUDGET_UNIT, LARGEST_BUDGET
from raas_sglang.policies import POLICIES

POLICY_NAMES = tuple(POLICIES)
DECODE_BACKENDS = {"cpu": "torch_native", "cuda": "flashinfer"}  # SGLang's names, by device
# Default of `--kv-trace-endpoint`: the stream holds texts, so no other machine may reach it.
LOOPBACK = "tcp://127.0.0.1:5558"


def _flag(default: Any, help_text: str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": help_text, "choices": choices})


@dataclass(frozen=True)
class RaasConfig:
    """Server-wide settings; each field is the flag of the same name (``kv_budget``: `--kv-budget`).

    Raises:
        ValueError: a value is out of range; the text says what must hold, what came, what to do.
    """

    kv_policy: str = _flag(
        "dense",
        "Policy of requests that name none; a request may name any of them. "
        + " ".join(f"{info.name}: {info.summary}" for info in POLICIES.values())
        + " All keep the whole prompt. Without this flag the plugin is off.",
        POLICY_NAMES,
    )
    kv_budget: int = _flag(
        1024,
        "Budget L: generated tokens that a request keeps for each layer and KV head "
        f"(tokens, a multiple of {BUDGET_UNIT}).",
    )
    kv_max_budget: int | None = _flag(
        None,
        "Largest budget that a request may name (tokens); sizes the eviction state; "
        "default: --kv-budget.",
    )
    kv_trace_endpoint: str | None = _flag(
        None,
        "Publishes texts and which of their tokens each request holds, over ZMQ, to everyone who "
        f"reaches this address; {LOOPBACK} if none is named; "
        "each rank of the server binds a port of its own from there on; off without this flag.",
    )
    kv_trace_interval: int = _flag(16, "Decode steps from one published sample to the next.")

    def __post_init__(self) -> None:
        if self.kv_policy not in POLICY_NAMES:
            names = ", ".join(POLICY_NAMES)
            raise ValueError(f"--kv-policy must be one of {names}, got {self.kv_policy!r}")
        check_budget("--kv-budget", self.kv_budget)
        if self.kv_max_budget is None:
            object.__setattr__(self, "kv_max_budget", self.kv_budget)
        check_budget("--kv-max-budget", self.kv_max_budget)
        if self.max_budget > LARGEST_BUDGET:
            raise ValueError(
                f"--kv-max-budget must be at most {LARGEST_BUDGET} tokens, got {self.max_budget}; "
                "use a smaller one, or dense"
            )
        if self.max_budget < self.kv_budget:
            raise ValueError(
                f"--kv-max-budget must be at least --kv-budget ({self.kv_budget}), "
                f"got {self.max_budget}; leave it out to use --kv-budget"
            )
        _check_endpoint(self.kv_trace_endpoint)
        interval = self.kv_trace_interval
        if not _is_int(interval) or interval < 1:
            raise ValueError(
                "--kv-trace-interval must be a positive number of decode steps, got "
                f"{interval!r}; use 1 for every step"
            )

    @property
    def evicts(self) -> bool:
        """Whether requests that name no policy give tokens up."""
        return self.kv_policy != "dense"

    @property
    def max_budget(self) -> int:
        """Largest budget of a request, in tokens."""
        assert self.kv_max_budget is not None, "set by __post_init__"
        return self.kv_max_budget

    @property
    def traced(self) -> bool:
        """Whether token tables are published."""
        return self.kv_trace_endpoint is not None


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds one flag for each field of `RaasConfig`; a flag that is not given stays None."""
    group = parser.add_argument_group("RaaS: KV cache eviction of generated tokens")
    texts = ("kv_policy", "kv_trace_endpoint")
    for item in fields(RaasConfig):
        shown = "" if item.default in (None, "dense") else f" Default: {item.default}."
        group.add_argument(
            "--" + item.name.replace("_", "-"),
            type=str if item.name in texts else int,
            default=None,
            nargs="?" if item.name == "kv_trace_endpoint" else None,
            const=LOOPBACK if item.name == "kv_trace_endpoint" else None,
            choices=item.metadata["choices"],
            help=item.metadata["help"] + shown,
        )


def take_settings(source: dict[str, Any]) -> RaasConfig | None:
    """Removes the settings from ``source`` (flag values or keyword arguments) and checks them.

    Returns:
        The configuration, or None if no policy was named: then the plugin is off.

    Raises:
        ValueError: a setting is wrong, or one was given without ``kv_policy``.
    """
    names = [item.name for item in fields(RaasConfig)]
    given = {name: source.pop(name) for name in names if source.get(name) is not None}
    for name in names:
        source.pop(name, None)
    if not given:
        return None
    if "kv_policy" not in given:
        flag = "--" + next(iter(given)).replace("_", "-")
        raise ValueError(f"{flag} must be given together with --kv-policy; add --kv-policy raas")
    return RaasConfig(**given)


def check_budget(name: str, budget: Any) -> None:
    """Checks that a budget is a positive multiple of `BUDGET_UNIT`, in tokens.

    Raises:
        ValueError: it is not; the text suggests the nearest that are.
    """
    if not _is_int(budget):
        kind = type(budget).__name__
        raise ValueError(f"{name} must be an integer number of tokens, got {budget!r} ({kind})")
    if budget < BUDGET_UNIT:
        raise ValueError(
            f"{name} must be at least {BUDGET_UNIT} tokens, got {budget}; use {BUDGET_UNIT} or more"
        )
    if budget % BUDGET_UNIT:
        below = budget // BUDGET_UNIT * BUDGET_UNIT
        raise ValueError(
            f"{name} must be a multiple of {BUDGET_UNIT} tokens, got {budget}; "
            f"use {below} or {below + BUDGET_UNIT}"
        )


def _check_endpoint(endpoint: str | None) -> None:
    if endpoint is None:
        return
    found = re.fullmatch(r"tcp://[^:/]+:([0-9]{1,5})", str(endpoint))
    if found is None or not 0 < int(found[1]) < 1 << 16:
        raise ValueError(
            f"--kv-trace-endpoint must be tcp://ADDRESS:PORT with a port from 1 to 65535, "
            f"got {endpoint!r}; use {LOOPBACK}"
        )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
