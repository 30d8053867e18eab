"""The tables of the throughput, and of the shortcut that it is measured with."""

from stored import Row, newest, read, shape_name
from table import device_and_pool, per_heading, pool_limit

WINDOW_STEPS = 1000  # a shorter window is one that was cut, which its cell says
_QUEUES = {"full": "", "fits": "as many as fit"}
_CHOSEN = ("state", "arm", "budget", "queue")
Case = tuple[str, str, int]


def throughput() -> str:
    """Tokens per second with a full queue over the output length, and how many requests ran."""
    return _table(in_steady_state())


def shortcut() -> str:
    """The steady state that was put together beside full runs of the same queue."""
    kept = _newest()
    run = {_case(row) for row in kept if row["config"]["state"] == "full run"}
    return _table([row for row in kept if _case(row) in run])


def in_steady_state() -> list[Row]:
    """The newest rows of the steady state, in pools of the size that SGLang chooses."""
    return [
        row for row in _newest() if row["config"]["state"] == "steady state" and not pool_limit(row)
    ]


def _newest() -> list[Row]:
    """Of each case, state, arm, budget and kind of queue the newest row, small budgets first."""
    rows = [row for row in read("throughput") if row["result"] == "throughput"]
    kept = newest(
        rows, lambda row: (_case(row), *(row["config"][name] for name in _CHOSEN))
    ).values()
    return sorted(kept, key=lambda row: row["config"]["budget"] or 0)


def _table(rows: list[Row]) -> str:
    best: dict[tuple[Case, str], float] = {}
    for row in rows:
        if row["config"]["arm"] == "default":
            key = _case(row), row["config"]["state"]
            best[key] = max(row["value"], best.get(key, 0.0))

    def cell(row: Row) -> str:
        reference = best.get((_case(row), row["config"]["state"]))
        is_other = row["config"]["arm"] != "default"
        ratio = f"{row['value'] / reference:.2f}x, " if reference and is_other else ""
        cut = f", {row['steps']} steps" if row["steps"] < WINDOW_STEPS else ""
        return f"{row['value']:,.0f} ({ratio}{row['running']:.0f}{cut})"

    return per_heading(
        rows,
        device_and_pool,
        "tokens/s (of the better `default`, running requests), output",
        _label,
        lambda row: int(row["config"]["output"]),
        cell,
    )


def _label(row: Row) -> str:
    config = row["config"]
    name = f"{shape_name(config['shape'])} `{config['arm']}`"
    budget = f"L = {config['budget']:,}" if config["budget"] else ""
    state = config["state"].replace("steady state", "")
    return ", ".join(filter(None, [name, budget, state, _QUEUES[config["queue"]]]))


def _case(row: Row) -> Case:
    """What rows must share to be held against each other, but for the state."""
    return device_and_pool(row), row["config"]["shape"], row["config"]["output"]
