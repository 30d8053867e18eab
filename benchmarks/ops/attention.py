"""Decode attention on a GPU: FlashInfer as SGLang plans it, other plans of it, and SGLang's fa3.

Every arm reads the separate caches of all layers in one CUDA graph, with L2 flushed before it, as
`eviction.py` does. Rows are saturated: each attends to a prompt and a full budget, one token a
page, in random slots. Before anything is timed the arms must agree.

    PYTHONPATH=.:kernels python3 -m benchmarks.ops.attention --out ops.jsonl
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from flashinfer.decode import BatchDecodeWithPagedKVCacheWrapper
from sgl_kernel.flash_attn import flash_attn_with_kvcache, get_scheduler_metadata

from benchmarks.harness.shapes import AttentionShape
from benchmarks.ops.timing import SHAPES, Case, OpRun, op_parser

DTYPE = torch.bfloat16
WORKSPACE = 1 << 30  # bytes; the smallest splits need a third of it
# How far two kernels may be apart, of outputs that are at most about 0.2.
TOLERANCE = 2e-3
# The first is how SGLang plans for a CUDA graph. The others have as many blocks as they need, which
# a graph can have too while rows stay as they are; in graph mode FlashInfer adds more, and does not
# mask them without split KV.
PLANS: dict[str, dict[str, Any]] = {
    "decode attention, FlashInfer": {},
    "decode attention, FlashInfer, unsplit": {"disable_split_kv": True},
    "decode attention, FlashInfer, 256 tokens a split": {"fixed_split_size": 256},
    "decode attention, FlashInfer, 512 tokens a split": {"fixed_split_size": 512},
}


class Attention:
    """The saturated rows of one decode step with their caches in all layers."""

    def __init__(self, shape: AttentionShape, rows: int, resident: int) -> None:
        self.shape, self.rows, self.resident = shape, rows, resident
        slots = rows * resident
        cache = (shape.layers, slots, 1, shape.kv_heads, shape.head_dim)
        self.keys, self.values = (self._normal(cache) for _ in range(2))
        self.q = self._normal((shape.layers, rows, shape.q_heads, shape.head_dim))
        self.indptr = torch.arange(0, slots + 1, resident, dtype=torch.int32, device="cuda")
        self.indices = torch.randperm(slots, device="cuda").int()
        self.lens = torch.full((rows,), resident, dtype=torch.int32, device="cuda")
        self.workspace = torch.empty(WORKSPACE, dtype=torch.uint8, device="cuda")

    def _normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.empty(shape, dtype=DTYPE, device="cuda").normal_()

    def bytes_moved(self) -> int:
        """Keys and values in, queries in and outputs out, of all layers."""
        group = self.shape.q_heads / self.shape.kv_heads
        return int(self.rows * (self.resident + group) * self.shape.bytes_per_slot)

    def arms(self) -> dict[str, Callable[[int], torch.Tensor]]:
        """Each arm gives the outputs of a layer, [B, Hq, D]."""
        flashinfer = {name: self._flashinfer(plan) for name, plan in PLANS.items()}
        return {**flashinfer, "decode attention, fa3": self._fa3()}

    def _flashinfer(self, plan: dict[str, Any]) -> Callable[[int], torch.Tensor]:
        shape, last_page = self.shape, torch.ones_like(self.lens)
        graph = {
            "use_cuda_graph": True,
            "paged_kv_indptr_buffer": self.indptr.clone(),
            "paged_kv_indices_buffer": self.indices.clone(),
            "paged_kv_last_page_len_buffer": last_page,
        }
        wrapper = BatchDecodeWithPagedKVCacheWrapper(
            self.workspace,
            "NHD",
            backend="fa2",
            use_tensor_cores=shape.q_heads // shape.kv_heads >= 4,
            **({} if plan else graph),
        )
        wrapper.plan(
            *(self.indptr, self.indices, last_page),
            *(shape.q_heads, shape.kv_heads, shape.head_dim, 1),
            q_data_type=DTYPE,
            kv_data_type=DTYPE,
            **plan,
        )

        def run(layer: int) -> torch.Tensor:
            out: torch.Tensor = wrapper.run(self.q[layer], (self.keys[layer], self.values[layer]))
            return out

        return run

    def _fa3(self) -> Callable[[int], torch.Tensor]:
        shape = self.shape
        queries = torch.arange(self.rows + 1, dtype=torch.int32, device="cuda")
        page_table = self.indices.view(self.rows, self.resident)
        metadata = get_scheduler_metadata(
            batch_size=self.rows,
            max_seqlen_q=1,
            max_seqlen_k=self.resident,
            num_heads=shape.q_heads,
            num_heads_k=shape.kv_heads,
            headdim=shape.head_dim,
            cache_seqlens=self.lens,
            qkv_dtype=DTYPE,
            cu_seqlens_q=queries,
            page_size=1,
            causal=True,
        )

        def run(layer: int) -> torch.Tensor:
            out: torch.Tensor = flash_attn_with_kvcache(
                q=self.q[layer],
                k_cache=self.keys[layer],
                v_cache=self.values[layer],
                page_table=page_table,
                cache_seqlens=self.lens,
                cu_seqlens_q=queries,
                max_seqlen_q=1,
                causal=True,
                scheduler_metadata=metadata,
            )
            return out

        return run


def cases(attention: Attention) -> list[Case]:
    """All arms over all layers.

    Raises:
        AssertionError: two arms disagree; nothing is timed then.
    """
    arms = attention.arms()
    first, *others = (run(0) for run in arms.values())
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=TOLERANCE)

    def all_layers(run: Callable[[int], torch.Tensor]) -> None:
        for layer in range(attention.shape.layers):
            run(layer)

    size = attention.bytes_moved()
    return [Case(name, partial(all_layers, run), size) for name, run in arms.items()]


def main() -> None:
    args = parse_args()
    torch.manual_seed(args.seed)
    run = OpRun(args)
    for name in args.shape:
        for batch_size in args.batch:
            attention = Attention(SHAPES[name], batch_size, args.prompt + args.budget)
            config = {"shape": name, "budget": args.budget, "batch": batch_size}
            config |= {"prompt": args.prompt}
            for case in cases(attention):
                run.time(case, config)
            del attention, case


def parse_args() -> argparse.Namespace:
    parser = op_parser(__doc__)
    parser.add_argument("--prompt", type=int, default=256, help="prompt length in tokens")
    parser.add_argument("--budget", type=int, default=1024, help="L in tokens")
    return parser.parse_args()


if __name__ == "__main__":
    main()
