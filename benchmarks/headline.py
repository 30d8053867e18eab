"""What the front page shows: `raas` with one budget against the default runtime, and no more."""

from stored import Row, distinct, flags_of, gpus, shape_name
from table import NOTHING, markdown
from throughput_tables import in_steady_state

SHAPE, BUDGET = "qwen2.5-7b", 1024
_NAMES = {"default": "default runtime", "raas": f"`raas`, L = {BUDGET:,}"}


def headline() -> str:
    """Tokens per second over the output length, with the multiple of the default runtime."""
    rows = headline_rows()
    if not any(_arm(row) == "raas" for row in rows):
        return NOTHING
    outputs = sorted({_output(row) for row in rows})
    found = {(gpu_name(row), _arm(row), _output(row)): row["value"] for row in rows}

    def cell(gpu: str, arm: str, output: int) -> str:
        value, reference = found.get((gpu, arm, output)), found.get((gpu, "default", output))
        if value is None:
            return ""
        ratio = f" ({value / reference:.2f}x)" if reference and arm != "default" else ""
        return f"{value:,.0f}{ratio}"

    lines = [
        [f"{gpu}, {_NAMES[arm]}", *(cell(gpu, arm, output) for output in outputs)]
        for gpu, arm in distinct((gpu_name(row), _arm(row)) for row in rows)
    ]
    head = ["tokens/s at outputs of", *(f"{output:,}" for output in outputs)]
    return f"{markdown(head, lines)}\n\n{', '.join(conditions(rows))}."


def headline_rows() -> list[Row]:
    """One row for each device, arm and output, in that order; of the two queues the better."""
    best: dict[tuple[str, str, int], Row] = {}
    for row in in_steady_state():
        config = row["config"]
        if config["shape"] == SHAPE and config["budget"] in (None, BUDGET) and _arm(row) in _NAMES:
            key = gpu_name(row), _arm(row), _output(row)
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
    return gpus(row).replace("NVIDIA ", "").removesuffix(" 80GB HBM3")


def _arm(row: Row) -> str:
    return str(row["config"]["arm"])


def _output(row: Row) -> int:
    return int(row["config"]["output"])
