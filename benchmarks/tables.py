"""The tables of the documents, each made from stored rows alone."""

import re
from collections.abc import Callable

from accuracy.tables import TABLES as ACCURACY
from model_shapes import attention_shape
from online_tables import prefix, serving
from ops_table import ops
from stored import Row, newest, read, run_of, shape_name
from table import device, device_and_budget, number, per_heading

WINDOW_STEPS = 1000  # a shorter window is one that was cut, which its cell says
AT_ONE_LENGTH = "inter-token latency at one resident length"
AT_LENGTH = re.compile(r"inter-token latency at (\d+) logical tokens")


def decode() -> str:
    """Latency at one resident length over the batch, each arm against `default` of its run."""
    rows = [row for row in read("decode") if row["result"] == AT_ONE_LENGTH]
    reference = {(run_of(row), _batch(row)): row for row in rows if _arm(row) == "default"}
    paired = [row for row in rows if (run_of(row), _batch(row)) in reference]
    kept = newest(paired, lambda row: (device_and_budget(row), _shape(row), _arm(row), _batch(row)))

    def cell(row: Row) -> str:
        ratio = row["value"] / reference[run_of(row), _batch(row)]["value"]
        return number(row["value"]) + ("" if _arm(row) == "default" else f" ({ratio:.2f})")

    return per_heading(
        list(kept.values()),
        device_and_budget,
        "ms between two tokens (of `default` in the same run), batch",
        lambda row: f"{shape_name(_shape(row))} `{_arm(row)}`",
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


def throughput() -> str:
    """Tokens per second with a full queue over the output length, and how many requests ran."""
    kept = newest_throughput()
    best: dict[tuple[str, str, int, str], float] = {}
    for row in kept.values():
        if _arm(row) == "default":
            key = _throughput_case(row)
            best[key] = max(row["value"], best.get(key, 0.0))

    def label(row: Row) -> str:
        budget = row["config"]["budget"]
        chosen = f", L = {budget:,}" if budget else ""
        state = row["config"]["state"].replace("steady state", "")
        ending = ", ".join(filter(None, [state, _QUEUES[row["config"]["queue"]]]))
        return f"{shape_name(_shape(row))} `{_arm(row)}`{chosen}{', ' if ending else ''}{ending}"

    def cell(row: Row) -> str:
        reference = best.get(_throughput_case(row))
        ratio = f"{row['value'] / reference:.2f}x, " if reference and _arm(row) != "default" else ""
        cut = f", {row['steps']} steps" if row["steps"] < WINDOW_STEPS else ""
        return f"{row['value']:,.0f} ({ratio}{row['running']:.0f}{cut})"

    return per_heading(
        list(kept.values()),
        device,
        "tokens/s (of the better `default`, running requests), output",
        label,
        lambda row: int(row["config"]["output"]),
        cell,
    )


def over_length() -> dict[tuple[object, ...], Row]:
    """The newest row of each device, budget, shape, arm, batch and logical length."""
    rows = [row for row in read("decode") if AT_LENGTH.fullmatch(row["result"])]
    return newest(rows, _length_key)


def newest_throughput() -> dict[tuple[object, ...], Row]:
    """The newest row of each device, shape, arm, budget, output length and kind of queue."""
    rows = [row for row in read("throughput") if row["result"] == "throughput"]
    return newest(rows, _throughput_key)


def logical_length(row: Row) -> int:
    """Logical length at which a row was measured, 0 of a row without one."""
    match = AT_LENGTH.fullmatch(row["result"])
    return int(match.group(1)) if match else 0


def slots_of_request(row: Row) -> float:
    """Slots in use while the row was measured, for each request."""
    used: list[int] = row["pool_tokens"]
    return sum(used) / len(used) / _batch(row)


def mebibytes_of_request(row: Row) -> float:
    """KV cache in those slots."""
    return slots_of_request(row) * attention_shape(_shape(row)).bytes_per_slot / 2**20


TABLES: dict[str, Callable[[], str]] = {
    "decode": decode,
    "latency": latency,
    "memory": memory,
    "throughput": throughput,
    "serving": serving,
    "prefix": prefix,
    "ops": ops,
    **ACCURACY,
}
_QUEUES = {"full": "", "fits": "as many as fit"}


def _default_of(row: Row, rows: dict[tuple[object, ...], Row]) -> Row | None:
    """What `default` came to where another arm was measured."""
    if _arm(row) == "default":
        return None
    return rows.get(_length_key(row, "default"))


def _over_length_label(row: Row) -> str:
    return f"{shape_name(_shape(row))} `{_arm(row)}`, batch {_batch(row)}"


def _length_key(row: Row, arm: str | None = None) -> tuple[object, ...]:
    chosen = arm or _arm(row)
    return device_and_budget(row), _shape(row), chosen, _batch(row), logical_length(row)


def _throughput_key(row: Row) -> tuple[object, ...]:
    config = row["config"]
    return (*_throughput_case(row), config["arm"], config["budget"], config["queue"])


def _throughput_case(row: Row) -> tuple[str, str, int, str]:
    config = row["config"]
    return device(row), config["shape"], config["output"], config["state"]


def _arm(row: Row) -> str:
    return str(row["config"]["arm"])


def _shape(row: Row) -> str:
    return str(row["config"]["shape"])


def _batch(row: Row) -> int:
    return int(row["config"]["batch"])
