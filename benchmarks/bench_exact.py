"""Times exact page scores on a GPU: plain FlashInfer decode, decode that leaves logits, the scores.

Each arm is a CUDA graph over all layers' own caches, so that they are as cold as in a model; the
arms are interleaved. The scores' alternative, one that reads the keys a second time, is listed by
the time that its bytes take at the measured copy bandwidth.

    python3 benchmarks/bench_exact.py --out benchmarks/results/exact.jsonl
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from flashinfer.decode import BatchDecodeWithPagedKVCacheWrapper

from graph_timing import captured, milliseconds
from op_run import SHAPES
from raas_kernels import DecodeBatch, EvictionBuffers, Policy, RequestTables
from raas_kernels.exact_scores import AttentionLogits, score_logits
from raas_kernels.layout import StepBuffers, StepOptions
from raas_sglang.attention.logits import LogitsDecodeWrapper, compile_logits_module
from rows import RowFile

# Both have these layers and this head size.
LAYERS, _, _, DIM = SHAPES["7B"]
PAGE, DTYPE = 16, torch.bfloat16
SCALING = DIM**-0.5


class Decode:
    """One saturated decode step: every row holds the prompt and a full budget."""

    def __init__(self, queries: int, heads: int, rows: int, prompt: int, budget: int) -> None:
        self.queries, self.heads, self.rows = queries, heads, rows
        self.prompt, self.budget = prompt, budget
        resident, slots = prompt + budget, rows * (prompt + budget)
        shape = (slots, 1, heads, DIM)
        self.caches = [(self._normal(shape), self._normal(shape)) for _ in range(LAYERS)]
        self.q = self._normal((LAYERS, rows, queries, DIM))
        self.indptr = self._integers(range(0, slots + 1, resident))
        self.indices = torch.randperm(slots, device="cuda").int()
        columns = (Policy.RAAS, prompt, budget, budget // 32, 0)
        requests = RequestTables(*(self._integers([column] * rows) for column in columns))
        positions = torch.full((rows,), prompt + 5 * budget + 7, device="cuda")
        slots_of_rows = torch.arange(1, rows + 1, device="cuda")
        self.batch = DecodeBatch(
            slots_of_rows, positions, slots_of_rows, self.indptr, self.indices, requests
        )
        pages, empty = budget // PAGE, torch.empty(0, device="cuda")
        current = torch.zeros(rows + 1, heads, dtype=torch.int32, device="cuda")
        self.buffers = EvictionBuffers(empty, empty, empty, current, empty)
        scores = torch.empty(LAYERS, rows, heads, pages, device="cuda")
        unused = [empty.expand(LAYERS, 0)] * 2
        self.step = StepBuffers(*unused, scores, torch.empty_like(scores))
        self.logits = AttentionLogits.empty(rows, queries, budget, "cuda")
        self.workspace = torch.empty(512 << 20, dtype=torch.uint8, device="cuda")

    def _normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.empty(shape, dtype=DTYPE, device="cuda").normal_()

    def _integers(self, values: Any) -> torch.Tensor:
        return torch.tensor(list(values), dtype=torch.int32, device="cuda")

    def arms(self) -> dict[str, Callable[[], None]]:
        """Each arm runs all layers once."""
        tensor_cores = self.queries // self.heads >= 4
        graph = {
            "use_cuda_graph": True,
            "paged_kv_indptr_buffer": self.indptr,
            "paged_kv_indices_buffer": self.indices,
            "paged_kv_last_page_len_buffer": torch.ones_like(self.indptr[1:]),
        }
        plain = BatchDecodeWithPagedKVCacheWrapper(
            self.workspace, "NHD", backend="fa2", use_tensor_cores=tensor_cores, **graph
        )
        module = compile_logits_module(DTYPE, DIM, tensor_cores)
        leaving = LogitsDecodeWrapper(self.workspace, module, **graph)
        for wrapper in (plain, leaving):
            wrapper.plan(
                *(self.indptr, self.indices, graph["paged_kv_last_page_len_buffer"]),
                *(self.queries, self.heads, DIM, 1),
                data_type=DTYPE,
                q_data_type=DTYPE,
                sm_scale=SCALING,
            )

        def decode() -> None:
            for layer in range(LAYERS):
                plain.run(self.q[layer], self.caches[layer])

        def decode_with_logits() -> None:
            for layer in range(LAYERS):
                self._leave(leaving, layer)

        def score() -> None:
            for layer in range(LAYERS):
                self._score(layer)

        def decode_and_score() -> None:
            for layer in range(LAYERS):
                self._leave(leaving, layer)
                self._score(layer)

        return {
            "decode": decode,
            "decode leaving logits": decode_with_logits,
            "score": score,
            "decode leaving logits, score": decode_and_score,
        }

    def _leave(self, wrapper: LogitsDecodeWrapper, layer: int) -> None:
        wrapper.run_with_logits(
            self.q[layer], self.caches[layer], SCALING, self.batch.requests, self.logits
        )

    def _score(self, layer: int) -> None:
        options = StepOptions(PAGE, 0, False, None)
        score_logits(
            self.logits, SCALING, self.batch, self.buffers, self.step.layer(layer), options
        )

    def key_bytes(self) -> int:
        """Bytes that a second reading of the budget's keys moves, in one layer."""
        return self.rows * self.budget * self.heads * DIM * DTYPE.itemsize


def copy_bandwidth() -> float:
    """Bytes read and written in a second by a large copy, the best of ten."""
    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    best = min(milliseconds(lambda: target.copy_(source), 5) for _ in range(10))
    return 2 * source.numel() / best * 1e3


def measure(file: RowFile, config: dict[str, Any], repeats: int, bandwidth: float) -> None:
    """Stores and prints the rows of one shape and batch size, in microseconds a layer."""
    shape = SHAPES[config["model"]]
    decode = Decode(
        queries=shape.q_heads,
        heads=shape.kv_heads,
        rows=config["batch"],
        prompt=config["prompt"],
        budget=config["budget"],
    )
    graphs = {name: captured(run) for name, run in decode.arms().items()}
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(repeats):
        for name, graph in graphs.items():
            times[name].append(milliseconds(graph.replay, 5) * 1e3 / LAYERS)
    limit = {"seconds_to_read_keys_again": decode.key_bytes() / bandwidth}
    for name, values in times.items():
        row = file.write(name, values, "us a layer", config, copy_bandwidth=bandwidth, **limit)
        median, (low, high) = row["value"], row["spread"]
        label = f"{config['model']:>5} {config['batch']:>4}  {name:<30}"
        print(f"{label}{median:>9.2f}  {low:.2f} to {high:.2f}")
    again = limit["seconds_to_read_keys_again"] * 1e6
    print(f"            (the keys' bytes again: {again:.2f} us)", flush=True)


def main() -> None:
    """Prints a table and appends one JSON line for each row."""
    args = parse_args()
    torch.manual_seed(args.seed)
    file = RowFile(args.out, args.seed, args.commit)
    bandwidth = copy_bandwidth()
    print(f"copy bandwidth {bandwidth / 1e12:.3f} TB/s")
    for model in args.models:
        for batch in args.batches:
            config = {"model": model, "batch": batch, "layers": LAYERS}
            config |= {"prompt": args.prompt, "budget": args.budget}
            measure(file, config, args.repeats, bandwidth)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16, 64, 128, 256])
    parser.add_argument("--prompt", type=int, default=256, help="prompt length (tokens)")
    parser.add_argument("--budget", type=int, default=1024, help="L (tokens)")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commit", help="commit that is measured; asked of git if not given")
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines to append to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
