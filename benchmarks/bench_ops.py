"""What each op costs on a GPU, against the bytes that it must move and SGLang's own KV store.

Every op runs on the separate buffers of all layers in one CUDA graph. L2 is flushed by reading
before each replay, as a model's weights do, and the flush's own time is subtracted; queries, keys
and values alone stay where the kernel before the store leaves them. Rows are saturated, and at
staggered steps: one in 16 begins a page, but where it is said that all do.

    PYTHONPATH=.:kernels python3 benchmarks/bench_ops.py --out ops.jsonl
"""

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from model_shapes import AttentionShape
from op_run import SHAPES, Case, OpRun, op_parser
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

try:
    from sglang.kernels.ops.kvcache.kvcache import store_cache
except ImportError:
    store_cache = None

PROMPT_LEN, PAGE_SIZE = 256, 16
CACHE_SLOTS = 1 << 16


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


def main() -> None:
    args = parse_args()
    run = OpRun(args)
    for name in args.shape:
        check(SHAPES[name], args.seed)
        for budget in args.budget:
            for batch_size in args.batch:
                work = Workload(SHAPES[name], budget, batch_size, args.seed)
                config = {"shape": name, "budget": budget, "batch": batch_size}
                for case in work.cases():
                    run.time(case, config)
                del work, case


def parse_args() -> argparse.Namespace:
    parser = op_parser(__doc__)
    parser.add_argument("--budget", nargs="+", type=int, default=[1024, 4096])
    return parser.parse_args()


if __name__ == "__main__":
    main()
