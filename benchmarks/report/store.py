"""Stored rows as tables and plots read them: of all that measured the same thing, the newest."""

import json
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.harness.cli import flag_number, quantised_cache

Row = dict[str, Any]
RESULTS = Path(__file__).parents[1] / "results"


def read(name: str) -> list[Row]:
    """Rows of a file in `benchmarks/results`, in their order; none if there is no such file."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def newest(rows: Iterable[Row], key: Callable[[Row], Hashable]) -> dict[Any, Row]:
    """The last row of each key; keys in the order in which they came first."""
    return {key(row): row for row in rows}


def distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, in the order in which they came first."""
    return list(dict.fromkeys(values))


def run_of(row: Row) -> tuple[str, str, str | None]:
    """What tells one run of a benchmark from another."""
    return row["command"], row["commit"], row["gpu"]


def gpus(row: Row) -> str:
    """What a row's servers ran on: a GPU, as many as share the model, or the CPU.

    What they were told of the KV cache is said beside it: only equal ones are held against others.
    """
    name = row["gpu"] or "CPU"
    shared = flag_number(flags_of(row), "--tp-size", "--tp")
    cache = cache_of(row)
    name = f"{shared} x {name}" if shared and shared > 1 else name
    return f"{name}, {cache} KV cache" if cache else name


def cache_of(row: Row) -> str | None:
    """The type of a row's KV cache if it is quantised, which is to 8 bits."""
    return quantised_cache(flags_of(row))


def flags_of(row: Row) -> list[str]:
    """The command line of a row's servers, empty where none ran."""
    return list(row.get("flags", []))


def arm_of(row: Row) -> str:
    """The arm that a row is about."""
    return str(row["config"]["arm"])


def shape_of(row: Row) -> str:
    """How the shape of a row's model is called in a table."""
    return shape_name(str(row["config"]["shape"]))


def shape_name(shape: str) -> str:
    """How a shape is called in a table."""
    family, _, size = shape.rpartition("-")
    return f"{family.capitalize()}-{size.upper()}" if family else shape


def source(rows: Iterable[Row]) -> str:
    """Device, versions and commits of what a table shows, and the commands that repeat it."""
    rows = list(rows)
    commits = ", ".join(distinct(f"`{row['commit']}`" for row in rows))
    versions = distinct(_version(row) for row in rows)
    repeats = " or ".join(distinct(str(row["repeats"]) for row in rows))
    commands = "\n".join(f"    {command}" for command in distinct(row["command"] for row in rows))
    return (
        f"{', '.join(versions)}, commit {commits}, "
        f"{repeats} {'repeat' if repeats == '1' else 'repeats'}.\n\n"
        f"<details><summary>commands</summary>\n\n{commands}\n\n</details>"
    )


def _version(row: Row) -> str:
    """What was measured; kernels alone need no SGLang."""
    versions = row["versions"]
    if "sglang" in versions:
        return f"SGLang {versions['sglang']}"
    return f"torch {versions['torch']}, Triton {versions['triton']}"
