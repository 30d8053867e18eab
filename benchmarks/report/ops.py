"""The table of the kernels, each against the bandwidth that it could have used."""

from benchmarks.report.store import Row, newest, read
from benchmarks.report.table import number, per_heading


def ops() -> str:
    """Time of each kernel for all layers of a step, over the batch."""
    rows = newest(read("ops"), lambda row: (_heading(row), row["result"], _batch(row)))
    corner = "us for all layers of a step (share of the bandwidth), batch"
    return per_heading(list(rows.values()), _heading, corner, _op, _batch, _cell)


def _heading(row: Row) -> str:
    config, cache = row["config"], row["config"].get("kv_cache_dtype", "bf16")
    named = "" if cache == "bf16" else f", {cache} KV cache"
    return f"{row['gpu']}, {config['shape']} shapes, L = {config['budget']:,}{named}"


def _op(row: Row) -> str:
    return f"`{row['result']}`"


def _batch(row: Row) -> int:
    return int(row["config"]["batch"])


def _cell(row: Row) -> str:
    return f"{number(row['value'])} ({row['share_of_bandwidth']:.0%})"
