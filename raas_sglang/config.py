"""What the server was started with: the flags, their defaults and what each must hold."""

import argparse
import math
import re
from dataclasses import dataclass, field, fields
from typing import Any

from raas_kernels import Policy

STAMP_RULES = ("lrfu", "paper", "alpha")
_LRFU_PAGE = 2  # tokens
_PAPER_PAGE = 16
# At least; fewer would read the keys more often, more would need memory for their queries.
_SCORED_STEPS = 4
# Where so many steps are few beside the budget, half of these reads are worth that memory.
_LARGE_BUDGET, _LARGE_SCORED_STEPS = 1024, 8  # tokens, steps
POLICY_NAMES = tuple(policy.name.lower() for policy in Policy)


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
        "Policy of requests that name none: dense keeps every token; raas, window, random and h2o "
        "keep the prompt and --kv-budget generated tokens. Without this flag the plugin is off.",
        POLICY_NAMES,
    )
    kv_budget: int = _flag(
        1024, "Budget L: generated tokens that a request keeps (tokens, a multiple of the page)."
    )
    kv_max_budget: int | None = _flag(
        None,
        "Largest budget that a request may name (tokens); sizes the eviction state; "
        "default: --kv-budget.",
    )
    kv_eviction_page_size: int | None = _flag(
        None,
        "Generated tokens that are scored and given up together (tokens, a power of two); "
        f"default: {_LRFU_PAGE} with lrfu, else {_PAPER_PAGE}.",
    )
    kv_score: str = _flag(
        "bound",
        "How raas scores a page: bound is Quest's upper bound of q.k from per-channel minima and "
        "maxima; exact is the largest attention probability of its tokens.",
        ("bound", "exact"),
    )
    kv_stamp_rule: str = _flag(
        "lrfu",
        "What raas remembers of a page. lrfu: how often and how lately it was attended, the sum of "
        "its shares of the softmax over all pages' scores, each decayed by its age. paper: RaaS as "
        "published, the last step at which it was among the best share of the budget's pages. "
        "alpha: the last step at which its score was above a probability; needs --kv-score exact.",
        STAMP_RULES,
    )
    kv_stamp_ratio: float = _flag(
        0.5, "Share r of the budget's pages that paper stamps (between 0 and 1)."
    )
    kv_stamp_alpha: float = _flag(
        1e-4, "Attention probability above which alpha stamps a page (between 0 and 1)."
    )
    kv_stamp_decay: int = _flag(
        128, "Decode steps in which lrfu lets the importance of a page fall by a factor of e."
    )
    kv_recency_floor: int | None = _flag(
        None,
        "Newest generated tokens that raas does not give up, at most half of a request's budget "
        "(tokens, a multiple of the page); default: that half with lrfu, else 0.",
    )
    kv_trace_endpoint: str | None = _flag(
        None,
        "Where to publish timestamp, birth and mass of every page over ZMQ, such as tcp://*:5558; "
        "each rank of the server binds a port of its own from there on; off without this flag.",
    )
    kv_trace_interval: int = _flag(16, "Decode steps from one published sample to the next.")

    def __post_init__(self) -> None:
        _one_of("--kv-policy", self.kv_policy, POLICY_NAMES)
        _one_of("--kv-score", self.kv_score, ("bound", "exact"))
        _one_of("--kv-stamp-rule", self.kv_stamp_rule, STAMP_RULES)
        if self.kv_eviction_page_size is None:
            page = _LRFU_PAGE if self.kv_stamp_rule == "lrfu" else _PAPER_PAGE
            object.__setattr__(self, "kv_eviction_page_size", page)
        page = self.page_size
        if not _is_int(page) or page < 1 or page & (page - 1):
            raise ValueError(
                f"--kv-eviction-page-size must be a power of two, got {page!r}; "
                f"use {_LRFU_PAGE} or {_PAPER_PAGE}"
            )
        check_budget("--kv-budget", self.kv_budget, page)
        if self.kv_max_budget is None:
            object.__setattr__(self, "kv_max_budget", self.kv_budget)
        check_budget("--kv-max-budget", self.max_budget, page)
        if self.max_budget < self.kv_budget:
            raise ValueError(
                f"--kv-max-budget must be at least --kv-budget ({self.kv_budget}), "
                f"got {self.max_budget}; leave it out to use --kv-budget"
            )
        _check_interval("--kv-stamp-decay", self.kv_stamp_decay)
        _between("--kv-stamp-ratio", self.kv_stamp_ratio)
        _between("--kv-stamp-alpha", self.kv_stamp_alpha)
        check_policy("--kv-policy", self.kv_policy, self.kv_score)
        if self.kv_stamp_rule == "alpha" and self.kv_score != "exact":
            raise ValueError(
                "--kv-stamp-rule alpha goes by attention probabilities and must be used with "
                f"--kv-score exact, got --kv-score {self.kv_score}; add --kv-score exact"
            )
        if self.kv_recency_floor is None:
            newest = self.max_budget if self.kv_stamp_rule == "lrfu" else 0
            object.__setattr__(self, "kv_recency_floor", newest)
        _check_floor(self.kv_recency_floor, page)
        _check_endpoint(self.kv_trace_endpoint)
        _check_interval("--kv-trace-interval", self.kv_trace_interval)

    @property
    def evicts(self) -> bool:
        """Whether requests that name no policy give tokens up."""
        return self.kv_policy != "dense"

    @property
    def page_size(self) -> int:
        """Tokens of an eviction page."""
        assert self.kv_eviction_page_size is not None, "set by __post_init__"
        return self.kv_eviction_page_size

    @property
    def max_budget(self) -> int:
        """Largest budget of a request, in tokens."""
        assert self.kv_max_budget is not None, "set by __post_init__"
        return self.kv_max_budget

    @property
    def traced(self) -> bool:
        """Whether page tables are published."""
        return self.kv_trace_endpoint is not None

    @property
    def alpha(self) -> float | None:
        """Threshold of the alpha rule, or None under another."""
        return self.kv_stamp_alpha if self.kv_stamp_rule == "alpha" else None

    @property
    def fade(self) -> float | None:
        """What the lrfu rule leaves of a mass at each step, or None."""
        return math.exp(-1 / self.kv_stamp_decay) if self.kv_stamp_rule == "lrfu" else None

    @property
    def scored_steps(self) -> int:
        """Decode steps of a request that are scored together."""
        if self.kv_score == "exact":
            return 1
        is_large = self.kv_budget >= _LARGE_BUDGET
        return max(_LARGE_SCORED_STEPS if is_large else _SCORED_STEPS, self.page_size)

    @property
    def recency_floor(self) -> int:
        """Newest tokens that raas does not give up where half of the budget is as much."""
        assert self.kv_recency_floor is not None, "set by __post_init__"
        return self.kv_recency_floor

    def stamp_pages(self, budget: int) -> int:
        """Pages that the paper's rule stamps at each step for a budget in tokens."""
        return max(1, int(self.kv_stamp_ratio * (budget // self.page_size)))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds one flag for each field of `RaasConfig`; a flag that is not given stays None."""
    group = parser.add_argument_group("RaaS: KV cache eviction of generated tokens")
    kinds = dict.fromkeys(("kv_policy", "kv_score", "kv_stamp_rule", "kv_trace_endpoint"), str)
    for item in fields(RaasConfig):
        kind = kinds.get(item.name, float if isinstance(item.default, float) else int)
        shown = "" if item.default in (None, "dense") else f" Default: {item.default}."
        group.add_argument(
            "--" + item.name.replace("_", "-"),
            type=kind,
            default=None,
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


def check_policy(name: str, policy: str, score: str) -> None:
    """Checks that what a policy goes by is computed.

    Raises:
        ValueError: it is not.
    """
    if policy == "h2o" and score != "exact":
        raise ValueError(
            f"{name} h2o gathers attention probabilities and must be used with a server started "
            f"with --kv-score exact, got --kv-score {score}; add --kv-score exact, or use another "
            "policy"
        )


def check_budget(name: str, budget: Any, page_size: int) -> None:
    """Checks that a budget is a positive multiple of the eviction page size, in tokens.

    Raises:
        ValueError: it is not; the text suggests the nearest that are.
    """
    if not _is_int(budget):
        kind = type(budget).__name__
        raise ValueError(f"{name} must be an integer number of tokens, got {budget!r} ({kind})")
    if budget < page_size:
        raise ValueError(
            f"{name} must be at least one eviction page ({page_size} tokens), got {budget}; "
            f"use {page_size} or more"
        )
    if budget % page_size:
        below = budget // page_size * page_size
        raise ValueError(
            f"{name} must be a multiple of the page size ({page_size}), got {budget}; "
            f"use {below} or {below + page_size}"
        )


def _check_floor(tokens: Any, page_size: int) -> None:
    if not _is_int(tokens) or tokens < 0:
        raise ValueError(
            f"--kv-recency-floor must be 0 or a number of tokens, got {tokens!r}; use 0 for none"
        )
    if tokens % page_size:
        below = tokens // page_size * page_size
        raise ValueError(
            f"--kv-recency-floor must be a multiple of the eviction page size ({page_size}), got "
            f"{tokens}; use {below} or {below + page_size}"
        )


def _check_endpoint(endpoint: str | None) -> None:
    if endpoint is not None and not re.fullmatch(r"tcp://[^:/]+:\d+", endpoint):
        raise ValueError(
            f"--kv-trace-endpoint must be tcp://ADDRESS:PORT, got {endpoint!r}; use tcp://*:5558"
        )


def _check_interval(flag: str, steps: Any) -> None:
    if not _is_int(steps) or steps < 1:
        raise ValueError(
            f"{flag} must be a positive number of decode steps, got {steps!r}; use 1 for every step"
        )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _one_of(flag: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{flag} must be one of {', '.join(choices)}, got {value!r}")


def _between(flag: str, value: float) -> None:
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{flag} must be above 0 and at most 1, got {value}")
