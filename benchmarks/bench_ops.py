"""What each op costs on a GPU, against the bytes that it must move and SGLang's own KV store.

Every op runs on the separate buffers of all layers in one CUDA graph. L2 is flushed by reading
before each replay, as a model's weights do, and the flush's own time is subtracted; queries, keys
and values alone stay where the kernel before the store leaves them. Rows are saturated, and at
staggered steps, so that some begin a page and some are scored, but where it is said that all do.

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
    KeyCaches,
    Policy,
    RequestTables,
    StepOptions,
    torch_ops,
    triton_ops,
)
from raas_sglang.config import RaasConfig
from raas_sglang.state import EvictionState, StateShape

try:
    from sglang.kernels.ops.kvcache.kvcache import store_cache
except ImportError:
    store_cache = None

PROMPT_LEN = 256
CACHE_SLOTS = 1 << 16


class Workload:
    """A batch of saturated RaaS requests with the caches and the state of all layers."""

    def __init__(
        self, shape: AttentionShape, budget: int, page_size: int, batch_size: int, seed: int
    ) -> None:
        config = RaasConfig("raas", budget, kv_eviction_page_size=page_size)
        self.shape, self.budget, self.rows = shape, budget, batch_size
        self.page_size, self.pages, self.steps = page_size, budget // page_size, config.scored_steps
        self.generator = torch.Generator("cuda").manual_seed(seed)
        self.options = StepOptions(page_size, 0, True, None, self.steps, fade=config.fade)
        self.options = self.options._replace(scaling=shape.head_dim**-0.5)
        sizes = (shape.q_heads, shape.kv_heads, shape.kv_heads)
        qkv = self._integers((batch_size, sum(sizes), shape.head_dim), -3, 4).bfloat16()
        self.q, self.k, self.v = qkv.split(sizes, dim=1)
        cache = (shape.layers, CACHE_SLOTS, shape.kv_heads, shape.head_dim)
        # Small integers, whose sums are exact in any order, filled in place: int64 needs 4x more.
        self.key_cache = torch.empty(cache, dtype=torch.bfloat16, device="cuda")
        self.key_cache.random_(-3, 4, generator=self.generator)
        self.key_caches = KeyCaches.of(list(self.key_cache))
        self.value_cache = torch.zeros_like(self.key_cache)
        sized = StateShape(
            shape.layers, shape.kv_heads, shape.q_heads, shape.head_dim, torch.bfloat16
        )
        state = EvictionState(config, sized, batch_size, "cuda")
        self.step, self.scratch = state.step, state.scratch
        self.buffers = self._buffers()
        self.offsets = torch.arange(1, batch_size + 1)
        self.batch = self._batch(self.offsets)
        self.beginning = self._batch(torch.zeros(batch_size))
        self.due = self._batch(torch.full((batch_size,), self.steps - 1))

    def _integers(self, size: tuple[int, ...], low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, size, generator=self.generator, device="cuda")

    def _buffers(self) -> EvictionBuffers:
        shape = (self.shape.layers, self.rows + 1, self.shape.kv_heads, self.pages)
        births = torch.rand(shape, generator=self.generator, device="cuda").argsort(-1)
        queries = (*shape[:2], self.steps, self.shape.q_heads, self.shape.head_dim)
        return EvictionBuffers(
            self._integers(shape, 0, 2 * self.budget).int(),
            (births * self.page_size).int(),
            torch.zeros(shape, device="cuda"),
            self._integers(shape[:3], 0, self.pages).int(),
            self._integers(queries, -3, 4).bfloat16(),
        )

    def _kv_slots(self, count: int) -> torch.Tensor:
        """Slots in random order; large batches share some, which only changes what is stored."""
        order = torch.randperm(CACHE_SLOTS - 1, generator=self.generator, device="cuda").int() + 1
        return order.repeat(-(-count // len(order)))[:count]

    def _batch(self, offsets: torch.Tensor) -> DecodeBatch:
        """The rows at some steps after saturation: an offset of 0 begins a page."""
        resident = PROMPT_LEN + self.budget
        columns = (int(Policy.RAAS), PROMPT_LEN, self.budget, self.pages // 2, 0)
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
                self.step.layer(layer), self.buffers.layer(layer), self.options,
            )  # fmt: skip

    def score(self, ops: Any, batch: DecodeBatch) -> None:
        ops.score_pages(self.scratch, self.key_caches, batch, self.buffers, self.options)

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
        """All that is timed; bytes are those of all layers."""
        shape, ops = self.shape, triton_ops
        vector = shape.head_dim * 2
        heads = shape.layers * self.rows * shape.kv_heads
        group = shape.q_heads // shape.kv_heads
        # Page, slot, target and timestamp; key and value in and out; queries in and out.
        claimed, plain, kept = heads * 16, heads * 4 * vector, heads * 2 * group * vector
        begun = heads * 12 * self.pages
        share = (self.offsets % self.page_size == 0).float().mean().item()
        yield Case(
            "claim_slots", partial(self.claim, ops, self.batch), claimed + int(share * begun)
        )
        yield Case(
            "claim_slots, all begin", partial(self.claim, ops, self.beginning), claimed + begun
        )
        yield Case(
            "store, torch index_put" if store_cache is None else "store, SGLang store_cache",
            self.sglang_store,
            plain,
        )
        yield Case("store_decode", partial(self.store, ops), plain + kept + 8 * heads)
        # Keys and queries; of each page its birth, and its mass in and out.
        asked = (self.budget + self.steps * group) * vector + 12 * self.pages
        share = ((self.offsets + 1) % self.steps == 0).float().mean().item()
        for name, batch, part in (("", self.batch, share), (", all due", self.due, 1.0)):
            score = partial(self.score, ops, batch)
            yield Case("score_pages" + name, score, int(part * heads * asked))


def check(shape: AttentionShape, seed: int) -> None:
    """One step on the kernels and on the torch ops must leave equal state behind.

    Raises:
        AssertionError: it does not; nothing is timed then.
    """
    ours, theirs = (Workload(shape, 1024, 2, 16, seed) for _ in range(2))
    for work, ops in ((ours, triton_ops), (theirs, torch_ops)):
        work.claim(ops, work.batch)
        work.store(ops)
        work.score(ops, work.batch)
    state = ((*w.buffers, *w.step, w.key_cache, w.value_cache) for w in (ours, theirs))
    for got, want in zip(*state, strict=True):
        # Only the softmax of bounds rounds.
        torch.testing.assert_close(got, want, rtol=1e-5, atol=0)


def main() -> None:
    args = parse_args()
    run = OpRun(args)
    for name in args.shape:
        check(SHAPES[name], args.seed)
        for budget in args.budget:
            for batch_size in args.batch:
                work = Workload(SHAPES[name], budget, args.page_size, batch_size, args.seed)
                config = {"shape": name, "budget": budget, "batch": batch_size}
                config["page_size"] = args.page_size
                for case in work.cases():
                    run.time(case, config)
                del work, case


def parse_args() -> argparse.Namespace:
    parser = op_parser(__doc__)
    parser.add_argument("--budget", nargs="+", type=int, default=[1024, 4096])
    parser.add_argument("--page-size", type=int, default=2, help="tokens of an eviction page")
    return parser.parse_args()


if __name__ == "__main__":
    main()
