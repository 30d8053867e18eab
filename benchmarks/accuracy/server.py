"""The servers that a grid needs: one for each combination of server-wide settings."""

import os
from collections.abc import Sequence
from pathlib import Path

from accuracy.grid import Cell
from local_server import CPU_FLAGS, CPU_POOL, LocalServer
from raas_sglang.cpu import cpu_environment, has_driver

GPU_FLAGS = ("--disable-prefill-cuda-graph", "--mem-fraction-static", "0.9")


def by_server(cells: Sequence[Cell], per: str) -> list[list[Cell]]:
    """Groups cells by the server that they are asked of; all keep the grid's order.

    Args:
        cells: The grid.
        per: ``settings`` for one server for all methods with equal settings, ``method`` for one
            each, which run in parallel.
    """
    groups: dict[object, list[Cell]] = {}
    for cell in cells:
        key = cell.method if per == "method" else cell.method.settings
        groups.setdefault(key, []).append(cell)
    return list(groups.values())


def make_server(
    cells: Sequence[Cell], model_path: Path, concurrency: int, flags: Sequence[str]
) -> LocalServer:
    """Returns a server that is not started yet.

    Args:
        cells: What it will be asked, with equal settings; decides these and the largest budget.
        model_path: Model to serve.
        concurrency: Requests that run at the same time.
        flags: Further flags; they win over the ones chosen here.
    """
    on_gpu = has_driver()
    budget = str(max((cell.budget or 0 for cell in cells), default=0) or 64)
    return LocalServer(
        [
            *(GPU_FLAGS if on_gpu else (*CPU_FLAGS, *CPU_POOL)),
            *(("--cuda-graph-max-bs-decode", str(concurrency)) if on_gpu else ()),
            *("--max-running-requests", str(concurrency)),
            *("--skip-server-warmup", "--sleep-on-idle"),
            *("--kv-policy", "dense", "--kv-budget", budget),
            *(part for name, value in cells[0].method.settings for part in (f"--kv-{name}", value)),
            *flags,
        ],
        dict(os.environ) if on_gpu else cpu_environment(),
        model_path,
        timeout_s=900.0,
    )
