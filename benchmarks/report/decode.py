"""The tables of the decode step: its latency, and what a request holds meanwhile."""

import re

from benchmarks.harness.shapes import attention_shape
from benchmarks.report.store import Row, arm_of, cache_of, newest, read, run_of, shape_of
from benchmarks.report.table import device_and_budget, number, per_heading

AT_ONE_LENGTH = "inter-token latency at one resident length"
AT_LENGTH = re.compile(r"inter-token latency at (\d+) logical tokens")


def decode() -> str:
    """Latency at one resident length over the batch, each arm against `default` of its run."""
    rows = [row for row in read("decode") if row["result"] == AT_ONE_LENGTH]
    reference = {(run_of(row), _batch(row)): row for row in rows if arm_of(row) == "default"}
    paired = [row for row in rows if (run_of(row), _batch(row)) in reference]
    kept = newest(paired, _key)

    def cell(row: Row) -> str:
        ratio = row["value"] / reference[run_of(row), _batch(row)]["value"]
        return number(row["value"]) + ("" if arm_of(row) == "default" else f" ({ratio:.2f})")

    return per_heading(
        list(kept.values()),
        device_and_budget,
        "ms between two tokens (of `default` in the same run), batch",
        lambda row: f"{shape_of(row)} `{arm_of(row)}`",
        _batch,
        cell,
    )


def latency() -> str:
    """Latency on the way to a long text, for each batch, each arm against `default`."""
    rows = over_length()

    def cell(row: Row) -> str:
        reference = _default_of(row, rows)
        ratio = f" ({row['value'] / reference['value']:.2f})" if reference else ""
        return number(row["value"]) + ratio

    return per_heading(
        list(rows.values()),
        device_and_budget,
        "ms between two tokens (of `default`), logical length",
        _over_length_label,
        logical_length,
        cell,
    )


def memory() -> str:
    """Slots and bytes of a request on the way to a long text, counted in the pool."""
    rows = over_length()

    def cell(row: Row) -> str:
        slots = slots_of_request(row)
        size = mebibytes_of_request(row)
        reference = _default_of(row, rows)
        share = f", 1/{slots_of_request(reference) / slots:.1f}" if reference else ""
        return f"{slots:,.0f} ({number(size)} MiB{share})"

    return per_heading(
        list(rows.values()),
        device_and_budget,
        "slots of a request (KV cache, share of `default`), logical length",
        _over_length_label,
        logical_length,
        cell,
    )


def over_length() -> dict[tuple[object, ...], Row]:
    """The newest row of each device, budget, shape, arm, batch and logical length."""
    rows = [row for row in read("decode") if AT_LENGTH.fullmatch(row["result"])]
    return newest(rows, _length_key)


def logical_length(row: Row) -> int:
    """Logical length at which a row was measured, 0 of a row without one."""
    match = AT_LENGTH.fullmatch(row["result"])
    return int(match.group(1)) if match else 0


def slots_of_request(row: Row) -> float:
    """Slots in use while the row was measured, for each request."""
    used: list[int] = row["pool_tokens"]
    return sum(used) / len(used) / _batch(row)


def mebibytes_of_request(row: Row) -> float:
    """KV cache in those slots, whose numbers a quantised cache halves."""
    size = attention_shape(_shape(row)).bytes_per_slot / (2 if cache_of(row) else 1)
    return slots_of_request(row) * size / 2**20


def _default_of(row: Row, rows: dict[tuple[object, ...], Row]) -> Row | None:
    """What `default` came to where another arm was measured."""
    if arm_of(row) == "default":
        return None
    return rows.get(_length_key(row, "default"))


def _over_length_label(row: Row) -> str:
    return f"{shape_of(row)} `{arm_of(row)}`, batch {_batch(row)}"


def _length_key(row: Row, arm: str | None = None) -> tuple[object, ...]:
    return *_key(row, arm), logical_length(row)


def _key(row: Row, arm: str | None = None) -> tuple[object, ...]:
    return device_and_budget(row), _shape(row), arm or arm_of(row), _batch(row)


def _shape(row: Row) -> str:
    return str(row["config"]["shape"])


def _batch(row: Row) -> int:
    return int(row["config"]["batch"])
