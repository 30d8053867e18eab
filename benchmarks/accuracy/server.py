"""The servers that a grid is asked of."""

import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.accuracy.grid import Cell
from benchmarks.harness.server import CPU_FLAGS, CPU_POOL, LocalServer
from raas_sglang.cpu import cpu_environment, has_driver

GPU_FLAGS = ("--disable-prefill-cuda-graph", "--mem-fraction-static", "0.9")


def by_server(cells: Sequence[Cell], count: int) -> list[list[Cell]]:
    """Groups cells by the server that they are asked of, method by method in turn.

    Args:
        cells: The grid.
        count: Servers, which run in parallel.
    """
    methods = list(dict.fromkeys(cell.method for cell in cells))
    groups: list[list[Cell]] = [[] for _ in range(min(count, len(methods)))]
    for cell in cells:
        groups[methods.index(cell.method) % len(groups)].append(cell)
    return groups


def make_server(
    cells: Sequence[Cell], model_path: Path, concurrency: int, flags: Sequence[str]
) -> LocalServer:
    """Returns a server that is not started yet.

    Args:
        cells: What it will be asked; decides the largest budget.
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
            *flags,
        ],
        dict(os.environ) if on_gpu else cpu_environment(),
        model_path,
        timeout_s=900.0,
    )
