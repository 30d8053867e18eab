"""Times kernels in a CUDA graph, where launching them costs nothing."""

from collections.abc import Callable

import torch


def captured(run: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """Warms up and captures ``run``."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def milliseconds(run: Callable[[], None], times: int) -> float:
    """Time of one run, over ``times`` of them in a row."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / times
