"""An HTTP request that chooses a policy, and the answer that says what happened.

SGLang hands ``custom_params`` on from some routes and drops them on others, and its answers leave
most of `meta_info` out. So a request is followed: what its body asks for is read where SGLang does
not, what stands in a wrong place is refused, and what the engine reports is put into the answer.
"""

from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from raas_sglang.life.options import BUDGET_KEY, POLICY_KEY, PROMPT_KEY, TRACE_KEY, names_choice
from raas_sglang.life.request import REPORT_FIELDS

CHOICE_KEY = "custom_params"
_OURS = (POLICY_KEY, BUDGET_KEY, PROMPT_KEY, TRACE_KEY, CHOICE_KEY)
_NAMED = f"{PROMPT_KEY}, {POLICY_KEY}, {BUDGET_KEY} and {TRACE_KEY}"
# Objects of a body in which clients put parameters that belong elsewhere.
_CONTAINERS = ("extra_body", "sampling_params", "parameters", "options", "instances")
_EVENT = b"data: "


class Route(NamedTuple):
    """How a route of SGLang's takes a choice and answers.

    Attributes:
        where: Path to the object of the body that holds ``custom_params``; empty for the body, None
            where a request cannot choose.
        is_native: Whether SGLang reads them there itself.
        limit: Path to the number of tokens to generate, where SGLang does not.
        has_meta_info: Whether the report reaches the client without us.
    """

    where: tuple[str, ...] | None = ()
    is_native: bool = True
    limit: tuple[str, ...] = ()
    has_meta_info: bool = False


@dataclass
class Exchange:
    """One request and its answer.

    Attributes:
        choice: ``custom_params`` of a route that drops them, or None.
        reports: What happened to each choice that has ended, by its index.
    """

    choice: dict[str, Any] | None = None
    reports: dict[int, dict[str, Any]] = field(default_factory=dict)

    def note(self, index: int, meta_info: dict[str, Any]) -> None:
        """Keeps the report of a choice that has ended."""
        if meta_info.get("finish_reason") and POLICY_KEY in meta_info:
            self.reports[index] = {name: meta_info[name] for name in REPORT_FIELDS}

    def in_order(self) -> list[dict[str, Any]]:
        """The reports by the order of the choices."""
        return [self.reports[index] for index in sorted(self.reports)]

    def complete(self, answer: bytes) -> bytes:
        """Adds the reports to an answer that came as a whole, an object in JSON."""
        if not self.reports:
            return answer
        return orjson.dumps(_with_metadata(orjson.loads(answer), self.in_order()))

    def complete_stream(self, chunk: bytes) -> bytes:
        """Adds to the objects that end a choice what happened to it.

        Args:
            chunk: Whole lines of a stream of server-sent events, or of JSON lines.
        """
        if not self.reports:
            return chunk
        return b"\n".join(self._complete_line(line) for line in chunk.split(b"\n"))

    def _complete_line(self, line: bytes) -> bytes:
        prefix = _EVENT if line.startswith(_EVENT) else b""
        text = line[len(prefix) :]
        if not text.startswith(b"{"):
            return line
        item = orjson.loads(text)
        reports = [self.reports[index] for index in _ended(item) if index in self.reports]
        return prefix + orjson.dumps(_with_metadata(item, reports)) if reports else line


# Set in the task that answers a request, so all that SGLang calls to answer it sees it.
current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


def read_choice(body: Any, route: Route) -> Any:
    """Returns ``custom_params`` of a body where SGLang drops them, else None.

    Args:
        body: A request's body, as parsed.
        route: Where it was sent.

    Raises:
        ValueError: it asks for something where nobody reads it.
    """
    if not isinstance(body, dict):
        return None
    for path, value in _asked(body, ()):
        got = f"got {'.'.join(path)} = {value!r}, which would be dropped"
        if route.where is None:
            raise ValueError(
                f"{_NAMED} must be sent to a route that takes them, {got}; leave it out"
            )
        if path != (*route.where, CHOICE_KEY):
            right = ".".join((*route.where, CHOICE_KEY))
            raise ValueError(f"{_NAMED} must stand in {right} of the body, {got}; move it")
    return None if route.is_native else body.get(CHOICE_KEY)


def read_limit(body: dict[str, Any], route: Route) -> int | None:
    """Returns how many tokens a body asks for where SGLang reads no choice; None if it is open."""
    value: Any = body
    for name in route.limit:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, int) else None


def _asked(holder: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Finds whatever asks for a policy or a budget, with the path to it."""
    for name in _OURS:
        value = holder.get(name)
        if value is not None and (name != CHOICE_KEY or names_choice(value)):
            yield (*path, name), value
    for name in _CONTAINERS:
        inner = holder.get(name)
        for item in inner if isinstance(inner, list) else [inner]:
            if isinstance(item, dict):
                yield from _asked(item, (*path, name))


def _ended(item: dict[str, Any]) -> list[int]:
    """Indices of the choices that an object of a stream ends: Anthropic's, Ollama's, OpenAI's."""
    if item.get("type") == "message_delta" or item.get("done") is True:
        return [0]
    choices = item.get("choices") or ()
    return [choice["index"] for choice in choices if choice.get("finish_reason")]


def _with_metadata(item: dict[str, Any], reports: list[dict[str, Any]]) -> dict[str, Any]:
    return {**item, "metadata": {**(item.get("metadata") or {}), "kv": reports}}
