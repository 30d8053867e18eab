"""What each op costs on a GPU, against the bytes that it must move and SGLang's own KV store.

Every op runs on the separate buffers of all layers in one CUDA graph. L2 is flushed by reading
before each replay, as a model's weights do, and the flush's own time is subtracted; queries, keys
and values alone stay where the kernel before the store leaves them. Rows are saturated, and at
staggered steps: one in 16 begins a page, but where it is said that all do.

    PYTHONPATH=.:kernels python3 benchmarks/bench_ops.py --out ops.jsonl
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from graph_timing import captured, milliseconds
from model_shapes import AttentionShape, attention_shape
from raas_kernels import (
    DecodeBatch,
    EvictionBuffers,
    Policy,
    RequestTables,
    StepBuffers,
    StepOptions,
    torch_ops,
    triton_ops,
)
from rows import RowFile

try:
    from sglang.kernels.ops.kvcache.kvcache import store_cache
except ImportError:
    store_cache = None

PROMPT_LEN, PAGE_SIZE = 256, 16
CACHE_SLOTS = 1 << 16
REPLAYS = 10


class Case(NamedTuple):
    """One thing to time: ``run`` does it for all layers."""

    op: str
    run: Callable[[], None]
    bytes_moved: int


SHAPES = {name: attention_shape(f"qwen2.5-{name.lower()}") for name in ("7B", "1.5B")}


class Workload:
    """A batch of saturated RaaS requests with the caches and the state of all layers."""

    def __init__(self, shape: AttentionShape, budget: int, batch_size: int, seed: int) -> None:
        self.shape, self.budget, self.rows = shape, budget, batch_size
        self.pages = budget // PAGE_SIZE
        self.generator = torch.Generator("cuda").manual_seed(seed)
        self.options = StepOptions(PAGE_SIZE, 0, True, None)
        sizes = (shape.q_heads, shape.kv_heads, shape.kv_heads)
        qkv = self._integers((batch_size, sum(sizes), shape.head_dim), -3, 4).bfloat16()
        self.q, self.k, self.v = qkv.split(sizes, dim=1)
        cache = (shape.layers, CACHE_SLOTS, shape.kv_heads, shape.head_dim)
        self.key_cache = torch.zeros(cache, dtype=torch.bfloat16, device="cuda")
        self.value_cache = torch.zeros_like(self.key_cache)
        self.buffers = self._buffers()
        state = (shape.layers, batch_size)
        self.step = StepBuffers(
            torch.zeros(*state, shape.kv_heads, dtype=torch.int32, device="cuda"),
            torch.zeros(*state, shape.q_heads, shape.head_dim, dtype=torch.bfloat16, device="cuda"),
            torch.zeros(
                *state, shape.kv_heads, shape.head_dim, dtype=torch.bfloat16, device="cuda"
            ),
            torch.zeros(*state, shape.kv_heads, self.pages, device="cuda"),
            torch.zeros(shape.layers, 0, shape.kv_heads, self.pages, device="cuda"),
        )
        self.batch = self._batch(torch.arange(1, batch_size + 1))
        self.beginning = self._batch(torch.zeros(batch_size))

    def _integers(self, size: tuple[int, ...], low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, size, generator=self.generator, device="cuda")

    def _buffers(self) -> EvictionBuffers:
        shape = (self.shape.layers, self.rows + 1, self.shape.kv_heads, self.pages)
        births = torch.rand(shape, generator=self.generator, device="cuda").argsort(-1) * PAGE_SIZE
        bounds = (*shape, self.shape.head_dim)
        low = torch.empty(bounds, dtype=torch.bfloat16, device="cuda")
        high = torch.empty_like(low)
        # Small integers, whose sums are exact in any order, filled in place: int64 needs 4x more.
        low.random_(0, 4, generator=self.generator).neg_()
        high.random_(0, 4, generator=self.generator)
        return EvictionBuffers(
            self._integers(shape, 0, 2 * self.budget).int(),
            births.int(),
            torch.zeros(shape, device="cuda"),
            self._integers(shape[:3], 0, self.pages).int(),
            low,
            high,
        )

    def _kv_slots(self, count: int) -> torch.Tensor:
        """Slots in random order; large batches share some, which only changes what is stored."""
        order = torch.randperm(CACHE_SLOTS - 1, generator=self.generator, device="cuda").int() + 1
        return order.repeat(-(-count // len(order)))[:count]

    def _batch(self, offsets: torch.Tensor) -> DecodeBatch:
        """The rows at some steps after saturation: an offset of 0 begins a page."""
        resident = PROMPT_LEN + self.budget
        columns = (int(Policy.RAAS), PROMPT_LEN, self.budget, self.pages // 2)
        return DecodeBatch(
            torch.arange(1, self.rows + 1, device="cuda"),
            (PROMPT_LEN + 2 * self.budget + offsets).long().cuda(),
            1 + torch.arange(self.rows, device="cuda"),
            torch.arange(self.rows + 1, dtype=torch.int32, device="cuda") * resident,
            self._kv_slots(self.rows * resident),
            RequestTables(
                *(torch.full((self.rows,), c, dtype=torch.int32, device="cuda") for c in columns)
            ),
        )

    def claim(self, ops: Any, batch: DecodeBatch) -> None:
        ops.claim_slots(self.step, batch, self.buffers, self.options)

    def store(self, ops: Any) -> None:
        for layer in range(self.shape.layers):
            ops.store_decode(
                self.q, self.k, self.v, self.key_cache[layer], self.value_cache[layer],
                self.step.layer(layer), self.options,
            )  # fmt: skip

    def score(self, ops: Any) -> None:
        ops.score_pages(self.step, self.batch, self.buffers, self.options)

    def stamp(self, ops: Any) -> None:
        ops.stamp_decode(self.step, self.batch, self.buffers, self.options)

    def sglang_store(self) -> None:
        """SGLang's store of the same keys and values; torch's where SGLang is not installed."""
        width = self.shape.kv_heads * self.shape.head_dim
        k, v = self.k.flatten(1), self.v.flatten(1)
        for layer in range(self.shape.layers):
            keys = self.key_cache[layer].view(-1, width)
            values = self.value_cache[layer].view(-1, width)
            if store_cache is None:
                keys[self.batch.out_cache_loc] = k
                values[self.batch.out_cache_loc] = v
            else:
                store_cache(k, v, keys, values, self.batch.out_cache_loc)

    def cases(self) -> Iterator[Case]:
        """All that is timed; bytes are those of all layers, state of the beginning pages aside."""
        shape, ops = self.shape, triton_ops
        vector = shape.head_dim * 2
        heads = shape.layers * self.rows * shape.kv_heads
        group = shape.q_heads // shape.kv_heads
        # Page, slot, target and timestamp; key and value in and out; queries in and out, key again.
        claimed, plain, kept = heads * 16, heads * 4 * vector, heads * (1 + 2 * group) * vector
        begun = heads * 12 * self.pages
        yield Case("claim_slots", partial(self.claim, ops, self.batch), claimed)
        yield Case(
            "claim_slots, all begin", partial(self.claim, ops, self.beginning), claimed + begun
        )
        yield Case(
            "store, torch index_put" if store_cache is None else "store, SGLang store_cache",
            self.sglang_store,
            plain,
        )
        yield Case("store_decode", partial(self.store, ops), plain + kept + 4 * heads)
        scored = heads * ((2 * self.pages + group + 3) * vector + 4 * self.pages)
        yield Case("score_pages", partial(self.score, ops), scored)
        yield Case("stamp_decode", partial(self.stamp, ops), heads * 6 * self.pages)


def check(shape: AttentionShape, seed: int) -> None:
    """One step on the kernels and on the torch ops must leave equal state behind.

    Raises:
        AssertionError: it does not; nothing is timed then.
    """
    ours, theirs = (Workload(shape, 1024, 16, seed) for _ in range(2))
    for work, ops in ((ours, triton_ops), (theirs, torch_ops)):
        work.claim(ops, work.batch)
        work.store(ops)
        work.score(ops)
        work.stamp(ops)
    state = ((*w.buffers, *w.step, w.key_cache, w.value_cache) for w in (ours, theirs))
    for got, want in zip(*state, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


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


def main() -> None:
    args = parse_args()
    stopwatch = Stopwatch(args.repeats)
    bandwidths = stopwatch.bandwidths()
    rows = RowFile(args.out, args.seed, args.commit)
    print(f"{torch.cuda.get_device_name()} {bandwidths}")
    print("us of all layers, us of one, share of the larger bandwidth")
    for name in args.shape:
        check(SHAPES[name], args.seed)
        for budget in args.budget:
            for batch_size in args.batch:
                work = Workload(SHAPES[name], budget, batch_size, args.seed)
                config = {"shape": name, "budget": budget, "batch": batch_size}
                config |= SHAPES[name]._asdict()
                for case in work.cases():
                    print_row(measure(case, stopwatch, bandwidths, rows, config))
                del work, case


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


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--budget", nargs="+", type=int, default=[1024, 4096])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16, 64, 128, 256])
    parser.add_argument("--repeats", type=int, default=7, help="of which the median counts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--commit", help="where git is not at hand")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines to append to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
