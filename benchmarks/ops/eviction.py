"""What each op costs on a GPU, against the bytes that it must move and SGLang's own KV store.

Every op runs on the separate buffers of all layers in one CUDA graph. L2 is flushed by reading
before each replay, as a model's weights do, and the flush's own time is subtracted; queries, keys
and values alone stay where the kernel before the store leaves them. Rows are saturated, and at
staggered steps, so that some are scored, but where it is said that all are.

    PYTHONPATH=.:kernels python3 -m benchmarks.ops.eviction --out ops.jsonl
"""

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.harness.shapes import AttentionShape
from benchmarks.ops.timing import SHAPES, Case, OpRun, op_parser
from raas_kernels import (
    DecodeBatch,
    KeyCaches,
    KVScales,
    RequestTables,
    StepOptions,
    torch_ops,
    triton_ops,
)
from raas_kernels.layout import UNSCALED
from raas_sglang.config import RaasConfig
from raas_sglang.policies import POLICIES
from raas_sglang.state import EvictionState, StateShape

try:
    from sglang.kernels.ops.kvcache.kvcache import store_cache
except ImportError:
    store_cache = None

PROMPT_LEN = 256
CACHE_SLOTS = 1 << 16
# Types of the KV cache, and scales that cost what any others do.
CACHES = {
    "bf16": (torch.bfloat16, UNSCALED),
    "fp8_e4m3": (torch.float8_e4m3fn, KVScales(0.5, 0.25)),
}


class Workload:
    """A batch of saturated requests with the caches and the state of all layers."""

    def __init__(
        self, policy: str, shape: AttentionShape, budget: int, batch_size: int, seed: int, kv: str
    ) -> None:
        self.shape, self.budget, self.rows = shape, budget, batch_size
        dtype, self.scales = CACHES[kv]
        self.kind = POLICIES[policy].kind
        self.period = self.kind.period(budget)
        self.generator = torch.Generator("cuda").manual_seed(seed)
        self.options = StepOptions(0, scaling=shape.head_dim**-0.5)
        sizes = (shape.q_heads, shape.kv_heads, shape.kv_heads)
        qkv = self._integers((batch_size, sum(sizes), shape.head_dim), -3, 4).bfloat16()
        self.q, self.k, self.v = qkv.split(sizes, dim=1)
        cache = (shape.layers, CACHE_SLOTS, shape.kv_heads, shape.head_dim)
        # Filled in place: int64 needs 4x more.
        keys = torch.empty(cache, dtype=torch.bfloat16, device="cuda")
        keys.random_(-3, 4, generator=self.generator)
        self.key_cache = keys.to(dtype)
        self.key_caches = KeyCaches.of(list(self.key_cache), [self.scales] * shape.layers)
        self.value_cache = torch.zeros_like(self.key_cache)
        heads = (shape.layers, shape.kv_heads, shape.q_heads, shape.head_dim)
        sized = StateShape(*heads, dtype=dtype, query_dtype=torch.bfloat16)
        # Row 0 of the requests is the padding row.
        state = EvictionState(RaasConfig(policy, budget), sized, batch_size + 1, "cuda")
        self.step, self.scratch, self.buffers = state.step, state.scratch, state.buffers
        self._age()
        self.offsets = torch.arange(1, batch_size + 1)
        self.batch = self._batch(self.offsets)
        self.due = self._batch(torch.full((batch_size,), -1))

    def _integers(self, size: tuple[int, ...], low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, size, generator=self.generator, device="cuda")

    def _age(self) -> None:
        """Leaves the state as a random past would have."""
        shape = self.buffers.births.shape
        order = torch.rand(shape, generator=self.generator, device="cuda").argsort(-1)
        self.buffers.births.copy_(order)
        self.buffers.victims.copy_(order[..., : self.buffers.victims.shape[3]])
        self.buffers.value_norms.uniform_(1, 2, generator=self.generator)
        self.buffers.query_means.normal_(generator=self.generator)
        self.buffers.query_variances.uniform_(generator=self.generator)
        self.buffers.key_means.normal_(generator=self.generator)
        self.buffers.key_variances.uniform_(generator=self.generator)

    def _kv_slots(self, count: int) -> torch.Tensor:
        """Slots in random order; large batches share some, which only changes what is stored."""
        order = torch.randperm(CACHE_SLOTS - 1, generator=self.generator, device="cuda").int() + 1
        return order.repeat(-(-count // len(order)))[:count]

    def _batch(self, offsets: torch.Tensor) -> DecodeBatch:
        """The rows at some steps after saturation: of an offset of -1 all are scored."""
        resident = PROMPT_LEN + self.budget

        def column(value: int) -> torch.Tensor:
            return torch.full((self.rows,), value, dtype=torch.int32, device="cuda")

        return DecodeBatch(
            req_pool_indices=torch.arange(1, self.rows + 1, device="cuda"),
            positions=(PROMPT_LEN + 2 * self.budget + offsets).long().cuda(),
            out_cache_loc=1 + torch.arange(self.rows, device="cuda"),
            kv_indptr=torch.arange(self.rows + 1, dtype=torch.int32, device="cuda") * resident,
            kv_indices=self._kv_slots(self.rows * resident),
            requests=RequestTables(
                policies=column(self.kind),
                prompt_lens=column(PROMPT_LEN),
                budgets=column(self.budget),
                periods=column(self.period),
                first_steps=column(0),
                capacities=column(PROMPT_LEN + self.budget),
            ),
        )

    def claim(self, ops: Any) -> None:
        ops.claim_slots(self.step, self.batch, self.buffers, self.options)

    def store(self, ops: Any) -> None:
        for layer in range(self.shape.layers):
            ops.store_decode(
                self.q, self.k, self.v, self.key_cache[layer], self.value_cache[layer],
                self.step.layer(layer), self.batch, self.buffers.layer(layer), self.scales,
            )  # fmt: skip

    def score(self, ops: Any, batch: DecodeBatch) -> None:
        ops.score_tokens(
            self.scratch, self.key_caches, self.step, batch, self.buffers, self.options
        )

    def sglang_store(self) -> None:
        """SGLang's store of the same keys and values; torch's where SGLang is not installed."""
        width = self.shape.kv_heads * self.shape.head_dim
        for layer in range(self.shape.layers):
            k, v = self.k.flatten(1), self.v.flatten(1)
            keys = self.key_cache[layer].view(-1, width)
            values = self.value_cache[layer].view(-1, width)
            if keys.element_size() == 1:
                # SGLang divides in place, but these are read again.
                k = (k / self.scales.k_scale).to(keys.dtype).view(torch.uint8)
                v = (v / self.scales.v_scale).to(keys.dtype).view(torch.uint8)
                keys, values = keys.view(torch.uint8), values.view(torch.uint8)
            if store_cache is None:
                keys[self.batch.out_cache_loc] = k
                values[self.batch.out_cache_loc] = v
            else:
                store_cache(k, v, keys, values, self.batch.out_cache_loc)

    def cases(self) -> Iterator[Case]:
        """All that is timed; bytes are those of all layers."""
        shape, ops = self.shape, triton_ops
        vector = shape.head_dim * 2
        stored = shape.head_dim * self.key_cache.element_size()
        heads = shape.layers * self.rows * shape.kv_heads
        group = shape.q_heads // shape.kv_heads
        # Victim, slot, target, place, birth and weight; key and value in and out; queries in, and
        # mean and variance of them and of the keys, in float32 in and out.
        claimed, moments = heads * 24, heads * (group * 9 + 8) * vector
        plain = heads * 2 * (vector + stored)
        yield Case("claim_slots", partial(self.claim, ops), claimed)
        yield Case(
            "store, torch index_put" if store_cache is None else "store, SGLang store_cache",
            self.sglang_store,
            plain,
        )
        noted = moments if self.kind.label == "raas" else heads * group * 2 * vector
        yield Case("store_decode", partial(self.store, ops), plain + noted + 12 * heads)
        # Keys and moments; of each token its slot, birth, norm and importance.
        asked = self.budget * stored + (4 * group + 4) * vector + 16 * self.budget
        share = ((self.offsets + 1) % self.period == 0).float().mean().item()
        for name, batch, part in (("", self.batch, share), (", all due", self.due, 1.0)):
            score = partial(self.score, ops, batch)
            yield Case("score_tokens" + name, score, int(part * heads * asked))


def check(policy: str, shape: AttentionShape, seed: int, kv: str) -> None:
    """One step on the kernels and on the torch ops must leave equal state behind.

    Raises:
        AssertionError: it does not; nothing is timed then.
    """
    ours, theirs = (Workload(policy, shape, 1024, 16, seed, kv) for _ in range(2))
    for work, ops in ((ours, triton_ops), (theirs, torch_ops)):
        work.claim(ops)
        work.store(ops)
        work.score(ops, work.batch)
    moments = ("query_means", "query_variances", "key_means", "key_variances")
    for name in ("births", "weights", "value_norms", *moments):
        got, want = (getattr(work.buffers, name) for work in (ours, theirs))
        torch.testing.assert_close(got, want, rtol=0.02, atol=0.05, msg=lambda m, n=name: n + m)
    for got, want in ((ours.key_cache, theirs.key_cache), (ours.value_cache, theirs.value_cache)):
        torch.testing.assert_close(got.float(), want.float(), rtol=0, atol=0)


def main() -> None:
    args = parse_args()
    run = OpRun(args)
    for name in args.shape:
        check(args.policy, SHAPES[name], args.seed, args.kv_cache_dtype)
        for budget in args.budget:
            for batch_size in args.batch:
                kv = args.kv_cache_dtype
                work = Workload(args.policy, SHAPES[name], budget, batch_size, args.seed, kv)
                config = {"shape": name, "budget": budget, "batch": batch_size}
                config |= {"policy": args.policy, "kv_cache_dtype": kv}
                for case in work.cases():
                    run.time(case, config)
                del work, case


def parse_args() -> argparse.Namespace:
    parser = op_parser(__doc__)
    parser.add_argument("--budget", nargs="+", type=int, default=[1024, 4096])
    scored = [name for name, info in POLICIES.items() if info.kind.period(1024)]
    parser.add_argument("--policy", choices=scored, default="raas")
    parser.add_argument("--kv-cache-dtype", choices=CACHES, default="bf16")
    return parser.parse_args()


if __name__ == "__main__":
    main()
