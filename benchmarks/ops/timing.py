"""What the benchmarks of ops have in common: the models, the clock, the rows and the flags.

Kernels are timed in CUDA graphs, where launching them costs nothing.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.harness.rows import RowFile
from benchmarks.harness.shapes import attention_shape

SHAPES = {name: attention_shape(f"qwen2.5-{name.lower()}") for name in ("7B", "1.5B")}
REPLAYS = 10


class Case(NamedTuple):
    """One thing to time: ``run`` does it for all layers."""

    op: str
    run: Callable[[], None]
    bytes_moved: int


class Stopwatch:
    """Times CUDA graphs that begin with a cold L2."""

    def __init__(self, repeats: int) -> None:
        self.repeats = repeats
        self.weights = torch.zeros(24 << 20, dtype=torch.float32, device="cuda")  # 2x the L2
        self.flush_us = statistics.median(self._graph_us(lambda: None))

    def __call__(self, run: Callable[[], None]) -> list[float]:
        """Microseconds of one run, once for each repeat."""
        return [each - self.flush_us for each in self._graph_us(run)]

    def bandwidths(self) -> dict[str, int]:
        """GB/s of a large copy on the device, bytes read and written, and of a large read."""
        source = torch.ones(1 << 28, dtype=torch.float32, device="cuda")
        copy = partial(torch.neg, source, out=torch.empty_like(source))
        size = 4 * len(source)
        copied, read = (statistics.median(self(run)) for run in (copy, source.sum))
        return {"copy_gb_s": round(2 * size / copied / 1e3), "read_gb_s": round(size / read / 1e3)}

    def _graph_us(self, run: Callable[[], None]) -> list[float]:
        def run_cold() -> None:
            self.weights.sum()
            run()

        graph = captured(run_cold)
        graph.replay()
        return [1e3 * milliseconds(graph.replay, REPLAYS) for _ in range(self.repeats)]


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


class OpRun:
    """Times cases one after another, and stores and prints each.

    Args:
        args: From a parser of `op_parser`.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._stopwatch = Stopwatch(args.repeats)
        self._bandwidths = self._stopwatch.bandwidths()
        self._rows = RowFile(args.out, args.seed, args.commit)
        print(f"{torch.cuda.get_device_name()} {self._bandwidths}")
        print("us of all layers, us of one, share of the larger bandwidth")

    def time(self, case: Case, config: dict[str, Any]) -> None:
        """Times a case; ``config`` names one of `SHAPES`, whose numbers the row has too."""
        config = {**config, **SHAPES[config["shape"]]._asdict()}
        print_row(measure(case, self._stopwatch, self._bandwidths, self._rows, config))


def measure(
    case: Case,
    stopwatch: Callable[[Callable[[], None]], list[float]],
    bandwidths: dict[str, int],
    rows: RowFile,
    config: dict[str, Any],
) -> dict[str, Any]:
    """Times a case, stores it and returns its row."""
    times = stopwatch(case.run)
    gb_s = case.bytes_moved / statistics.median(times) / 1e3
    share = round(gb_s / max(bandwidths.values()), 3)
    about = {"bytes": case.bytes_moved, "share_of_bandwidth": share, **bandwidths}
    return rows.write(case.op, times, "us for all layers of one step", config, **about)


def print_row(row: dict[str, Any]) -> None:
    config = row["config"]
    where = f"{config['shape']:>5} L {config['budget']:>5} batch {config['batch']:>3}"
    each = row["value"] / config["layers"]
    share = 100 * row["share_of_bandwidth"]
    print(
        f"{where}  {row['result']:<26}{row['value']:>9.1f} {each:>7.2f} {share:>6.1f} %", flush=True
    )


def op_parser(description: str) -> argparse.ArgumentParser:
    """Returns a parser with the flags that they all have; shows the first line of a docstring."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16, 64, 128, 256])
    parser.add_argument("--repeats", type=int, default=7, help="of which the median counts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--commit", help="where git is not at hand")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines to append to")
    return parser
