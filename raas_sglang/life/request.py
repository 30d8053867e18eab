"""The record of one request: how far it has come, and what its slots hold.

It alone knows the *logical* length (tokens of the text), the *resident* length (slots that hold
them) and the capacity P + L at which the two part. SGLang's `Req` carries it as ``req.raas``.
"""

from array import array
from dataclasses import InitVar, dataclass, field
from typing import Any

from raas_kernels import Policy
from raas_sglang.life.options import RequestOptions

REPORT_FIELDS = ("kv_policy", "kv_budget", "logical_tokens", "resident_tokens", "evicted_tokens")
NO_LIMIT = 2**31 - 1  # which tables of int32 can hold


@dataclass(slots=True)
class RequestState:
    """How far a request has come, as its transitions left it.

    It begins as `arrive` leaves it.

    Attributes:
        options: What it asked for.
        prompt_len: P, tokens before the first generated one; does not move when the request is
            retracted and its output is prefilled again.
        capacity: P + L, slots that an evicting request can hold; others have no limit.
        logical_len: Tokens of the text whose keys and values were computed, steps in flight
            included.
        resident_len: Slots that the request holds, shared prompt included.
        skipped_len: Generated tokens that are left out when it is prefilled again.
        is_resuming: Whether generated tokens were prefilled and no step has been decoded since.
        counted_len: Evicted tokens that the metrics have counted.
    """

    options: RequestOptions
    input_len: InitVar[int]
    prompt_len: int = field(init=False)
    capacity: int = field(init=False, default=NO_LIMIT)
    logical_len: int = 0
    resident_len: int = 0
    skipped_len: int = 0
    is_resuming: bool = False
    counted_len: int = 0

    def __post_init__(self, input_len: int) -> None:
        self.arrive(input_len)

    def arrive(self, input_len: int) -> None:
        """Its input has so many tokens; what its budget has no place for is not computed."""
        self.prompt_len = self.options.prompt_of(input_len)
        if self.options.evicts:
            self.capacity = self.prompt_len + self.options.budget
        self.retract(input_len)
        self.counted_len = self.skipped_len  # counted when given up, before it was sent

    def prefilled(self, resident_len: int) -> None:
        """The slots up to ``resident_len`` hold their tokens."""
        self.resident_len = resident_len
        skipped = self.skipped_len if resident_len > self.prompt_len else 0
        self.logical_len = resident_len + skipped
        self.is_resuming = self.options.evicts and resident_len > self.prompt_len

    def resume(self) -> None:
        """Its budget is laid out again, so it goes on as if it had not been retracted."""
        self.is_resuming = False

    def step(self) -> None:
        """The text grows by one token, and the slots as long as they do not reach P + L."""
        if self.logical_len < self.capacity:
            self.resident_len += 1
        self.logical_len += 1

    def retract(self, text_len: int) -> None:
        """Gives its slots back; a text of so many tokens is prefilled again.

        What it would give up at once is left out.
        """
        self.skipped_len = max(0, text_len - self.capacity)

    def count(self) -> tuple[int, int]:
        """Evicted tokens that the metrics have counted so far, and from now on."""
        before = self.counted_len
        self.counted_len = max(before, self.evicted_len)
        return before, self.counted_len

    @property
    def is_bounded(self) -> bool:
        """Whether it can never hold more than P + L slots, as of its options."""
        return self.options.is_bounded

    @property
    def is_saturated(self) -> bool:
        """Whether its next token overwrites an old one."""
        return self.logical_len >= self.capacity

    @property
    def has_overwritten(self) -> bool:
        """Whether its slots no longer hold its text from the start on.

        So it is once a step, finished or in flight, has overwritten a generated token, or once
        tokens were left out when the request was prefilled again.
        """
        return self.logical_len > self.resident_len

    @property
    def generated_len(self) -> int:
        """Generated tokens whose keys and values were computed."""
        return max(0, self.logical_len - self.prompt_len)

    @property
    def evicted_len(self) -> int:
        """Generated tokens that were given up: slots that a dense request would hold besides."""
        return self.logical_len - self.resident_len

    def kept(self, text: "array[int]") -> "array[int]":
        """The part of a text that is prefilled."""
        return text[: self.prompt_len] + text[self.prompt_len + self.skipped_len :]

    def matchable_len(self, longest: int) -> int:
        """How many tokens of a prefix it may take from others: none that it will overwrite."""
        return min(longest, self.prompt_len) if self.options.evicts else longest

    def shareable_len(self, end: int) -> int:
        """While it runs: how many of its first ``end`` slots others may take, none that it will
        overwrite.
        """
        return min(end, self.prompt_len) if self.options.evicts else end

    def finish(self, end: int) -> int:
        """At its end: how many of its first ``end`` slots others may take, none overwritten.

        A step in flight counts, since the overlap scheduler runs one step ahead of the results.
        """
        return min(end, self.prompt_len) if self.has_overwritten else end

    def report(self) -> dict[str, Any]:
        """What the response says in ``meta_info``."""
        policy = self.options.policy
        values = (
            policy.label,
            None if policy is Policy.DENSE else self.options.budget,
            self.logical_len,
            self.resident_len,
            self.evicted_len,
        )
        return dict(zip(REPORT_FIELDS, values, strict=True))
