"""The tables of the throughput, of the shortcut that it is measured with, and the front page's."""

from benchmarks.report.store import (
    Row,
    arm_of,
    distinct,
    flags_of,
    gpus,
    newest,
    read,
    shape_name,
    shape_of,
)
from benchmarks.report.table import NOTHING, device_and_pool, markdown, per_heading, pool_limit

SHAPE, BUDGET = "qwen2.5-7b", 1024  # of the front page
WINDOW_STEPS = 1000  # a shorter window is one that was cut, which its cell says
_QUEUES = {"full": "", "fits": "as many as fit"}
NAMES = {"default": "default runtime", "raas": f"`raas`, L = {BUDGET:,}"}
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


def headline() -> str:
    """Tokens per second over the output length, with the multiple of the default runtime."""
    rows = headline_rows()
    if not any(arm_of(row) == "raas" for row in rows):
        return NOTHING
    outputs = sorted({_output(row) for row in rows})
    found = {(gpu_name(row), arm_of(row), _output(row)): row["value"] for row in rows}

    def cell(gpu: str, arm: str, output: int) -> str:
        value, reference = found.get((gpu, arm, output)), found.get((gpu, "default", output))
        if value is None:
            return ""
        ratio = f" ({value / reference:.2f}x)" if reference and arm != "default" else ""
        return f"{value:,.0f}{ratio}"

    lines = [
        [f"{gpu}, {NAMES[arm]}", *(cell(gpu, arm, output) for output in outputs)]
        for gpu, arm in distinct((gpu_name(row), arm_of(row)) for row in rows)
    ]
    head = ["tokens/s at outputs of", *(f"{output:,}" for output in outputs)]
    return f"{markdown(head, lines)}\n\n{', '.join(conditions(rows))}."


def headline_rows() -> list[Row]:
    """One row for each device, arm and output, in that order; of the two queues the better."""
    best: dict[tuple[str, str, int], Row] = {}
    for row in in_steady_state():
        config = row["config"]
        if config["shape"] == SHAPE and config["budget"] in (None, BUDGET) and arm_of(row) in NAMES:
            key = gpu_name(row), arm_of(row), _output(row)
            best[key] = max(row, best.get(key, row), key=lambda one: float(one["value"]))
    return [best[key] for key in sorted(best)]


def conditions(rows: list[Row]) -> list[str]:
    """Model, weights, prompt, version and repeats of rows, in this order."""
    values = (
        [f"{shape_name(SHAPE)} shapes"],
        ["**dummy weights**" if "dummy" in flags_of(row) else "real weights" for row in rows],
        [f"prompts of {row['config']['prompt']}" for row in rows],
        [f"SGLang {row['versions']['sglang']}" for row in rows],
        ["1 repeat" if row["repeats"] == 1 else f"{row['repeats']} repeats" for row in rows],
    )
    return [" or ".join(distinct(each)) for each in values]


def gpu_name(row: Row) -> str:
    """What a row's server ran on, as short as it is clear."""
    return gpus(row).replace("NVIDIA ", "").replace(" 80GB HBM3", "")


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
        if arm_of(row) == "default":
            key = _case(row), row["config"]["state"]
            best[key] = max(row["value"], best.get(key, 0.0))

    def cell(row: Row) -> str:
        reference = best.get((_case(row), row["config"]["state"]))
        is_other = arm_of(row) != "default"
        ratio = f"{row['value'] / reference:.2f}x, " if reference and is_other else ""
        cut = f", {row['steps']} steps" if row["steps"] < WINDOW_STEPS else ""
        return f"{row['value']:,.0f} ({ratio}{row['running']:.0f}{cut})"

    return per_heading(
        rows,
        device_and_pool,
        "tokens/s (of the better `default`, running requests), output",
        _label,
        _output,
        cell,
    )


def _label(row: Row) -> str:
    config = row["config"]
    name = f"{shape_of(row)} `{arm_of(row)}`"
    budget = f"L = {config['budget']:,}" if config["budget"] else ""
    state = config["state"].replace("steady state", "")
    return ", ".join(filter(None, [name, budget, state, _QUEUES[config["queue"]]]))


def _case(row: Row) -> Case:
    """What rows must share to be held against each other, but for the state."""
    return device_and_pool(row), row["config"]["shape"], _output(row)


def _output(row: Row) -> int:
    return int(row["config"]["output"])
