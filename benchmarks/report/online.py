"""The tables of the online load and of the shared prefix."""

from benchmarks.report.store import Row, arm_of, newest, read, shape_of
from benchmarks.report.table import device, device_and_pool, number, per_heading

_ROUNDED = {"requests/s": ".2f", "tokens/s": ",.0f", "slots": ",.0f", "tokens": ",.0f"}


def serving() -> str:
    """What a Poisson load came to, over its rate."""
    rows = newest(read("serving"), lambda row: (_serving_heading(row), _label(row), _rate(row)))
    measured = [row for row in rows.values() if "rate" in row["config"]]
    return per_heading(measured, _serving_heading, "requests/s", _label, _rate, _cell)


def prefix() -> str:
    """Time to first token over a shared prefix, and the slots in use, over the requests."""
    rows = newest(read("prefix"), lambda row: (device(row), _label(row), _requests(row)))
    measured = [row for row in rows.values() if "requests" in row["config"]]
    return per_heading(measured, device, "requests over one prefix", _label, _requests, _cell)


def _serving_heading(row: Row) -> str:
    config = row["config"]
    if "rate" not in config:
        return device(row)
    return (
        f"{device_and_pool(row)}, output {config['output']}, L = {config['budget']:,}, targets "
        f"{config['ttft_ms']:g} ms and {config['itl_ms']:g} ms"
    )


def _label(row: Row) -> str:
    return f"{shape_of(row)} `{arm_of(row)}`: {row['result']}"


def _rate(row: Row) -> float:
    return float(row["config"].get("rate", 0))


def _requests(row: Row) -> float:
    return float(row["config"].get("requests", 0))


def _cell(row: Row) -> str:
    """A median, from the least to the most of its rounds."""
    form = _ROUNDED.get(row["unit"])

    def told(value: float) -> str:
        return format(value, form) if form else number(value)

    value, least, most = map(told, (row["value"], *row["spread"]))
    spread = f" ({least} to {most})" if least != most else ""
    once = f" (once: {row['held_once']:,})" if row["unit"] == "slots" else ""
    return f"{value}{spread} {row['unit']}{once}"
