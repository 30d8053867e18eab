"""The ops against the naive rules: victims, timestamps and slots bit for bit, step by step."""

import os
import random
from dataclasses import dataclass

import pytest
import torch

from naive_policy import NaiveHead
from raas_kernels import DecodeBatch, EvictionBuffers, Policy, RequestTables, torch_ops
from raas_kernels.layout import StepOptions
from raas_kernels.ops import implementation

PAGE = 16


@dataclass
class Request:
    policy: str
    prompt_len: int
    budget: int


class Layer:
    """One layer of a toy engine: a KV cache, requests in it, and their naive twins."""

    def __init__(self, requests, ops, heads=2, group=2, dim=16, ratio=0.5, device="cpu", **options):
        self.requests, self.ops, self.heads, self.group, self.dim = requests, ops, heads, group, dim
        self.device = device
        self.options = StepOptions(PAGE, 3, 1, options.pop("bound_scores", True))
        self.alpha = options.pop("alpha", None)
        largest = max(r.budget for r in requests) // PAGE
        slots = len(requests) + 1
        shape = (slots, heads, largest)
        # Poison: whatever is read before it was written shows.
        self.buffers = EvictionBuffers(
            torch.full(shape, -77, dtype=torch.int32, device=device),
            torch.full(shape, -77, dtype=torch.int32, device=device),
            torch.full(shape, float("nan"), device=device),
            torch.full(shape[:2], -77, dtype=torch.int32, device=device),
            torch.full((*shape, dim), float("nan"), device=device),
            torch.full((*shape, dim), float("nan"), device=device),
        )
        self.tables = RequestTables(
            *(
                torch.tensor([0, *values], dtype=torch.int32, device=device)
                for values in (
                    [Policy[r.policy.upper()] for r in requests],
                    [r.prompt_len for r in requests],
                    [r.budget for r in requests],
                    [max(1, int(ratio * (r.budget // PAGE))) for r in requests],
                )
            )
        )
        self._lay_out()
        self.naive = [
            [NaiveHead(r.policy, r.budget, PAGE, ratio, (3, head + 1)) for head in range(heads)]
            for r in requests
        ]

    def _lay_out(self):
        width = max(r.prompt_len + r.budget for r in self.requests)
        total = 1 + sum(r.prompt_len + r.budget for r in self.requests)
        order = list(range(1, total))
        random.Random(5).shuffle(order)
        self.rows = torch.zeros(len(self.requests) + 1, width, dtype=torch.int32)
        for index, request in enumerate(self.requests, start=1):
            count = request.prompt_len + request.budget
            self.rows[index, :count] = torch.tensor(order[:count], dtype=torch.int32)
            order = order[count:]
        self.rows = self.rows.to(self.device)
        self.key_cache = torch.full((total, self.heads, self.dim), float("nan"), device=self.device)
        self.value_cache = self.key_cache.clone()

    def batch(self, step):
        seq_lens, locations = [], []
        for index, request in enumerate(self.requests, start=1):
            seq_lens.append(request.prompt_len + step + 1)
            grows = request.policy != "dense" and step < request.budget
            location = self.rows[index, request.prompt_len + step] if grows else 0
            locations.append(int(location))
        return DecodeBatch(
            torch.arange(1, len(self.requests) + 1, device=self.device),
            torch.tensor(seq_lens, device=self.device),
            torch.tensor(locations, device=self.device),
            self.rows,
        )

    def step(self, step, generator):
        """Runs one step through the op and through the naive heads, and compares the slots."""

        def small(*shape):
            return torch.randint(-3, 4, shape, generator=generator).float()

        rows = len(self.requests)
        q, k = small(rows, self.heads * self.group, self.dim), small(rows, self.heads, self.dim)
        v = torch.full_like(k, float(step))
        batch = self.batch(step)
        args = (t.to(self.device) for t in (q, k, v))
        self.ops.store_decode(
            *args, self.key_cache, self.value_cache, batch, self.tables, self.buffers, self.options
        )
        scores, mass = (
            self.exact(generator, step) if not self.options.bound_scores else (None, None)
        )
        if scores is not None:
            self.ops.stamp_decode(
                scores.to(self.device), mass.to(self.device), batch, self.tables, self.buffers,
                self.options, self.alpha,
            )  # fmt: skip
        for row, request in enumerate(self.requests):
            for head, naive in enumerate(self.naive[row]):
                place = naive.store(step, k[row, head].tolist())
                slot = int(self.rows[row + 1, request.prompt_len + place])
                assert self.value_cache[slot, head].eq(step).all(), (step, request, head)
                assert self.key_cache[slot, head].cpu().equal(k[row, head])
                self.stamp(naive, step, row, head, q, scores, mass)
        self.compare(step)

    def exact(self, generator, step):
        shape = (len(self.requests), self.heads, self.buffers.stamps.shape[2])
        # Multiples of 1/64 add up exactly in any order.
        return (torch.randint(0, 64, shape, generator=generator) / 64.0 for _ in range(2))

    def stamp(self, naive, step, row, head, q, scores, mass):
        present = range(len(naive.pages))
        if self.options.bound_scores:
            if naive.policy == "raas":
                group = q[row, head * self.group : (head + 1) * self.group].tolist()
                naive.stamp_top(step, {p: naive.bound(p, group) for p in present})
            return
        if naive.policy == "h2o":
            for place in present:
                naive.pages[place].mass += float(mass[row, head, place])
        if naive.policy == "raas":
            given = {p: float(scores[row, head, p]) for p in present}
            if self.alpha is None:
                naive.stamp_top(step, given)
            else:
                naive.stamp_above(step, given, self.alpha)

    def compare(self, step):
        stamps, births = self.buffers.stamps.cpu(), self.buffers.births.cpu()
        current = self.buffers.current.cpu()
        for row, request in enumerate(self.requests, start=1):
            for head, naive in enumerate(self.naive[row - 1]):
                count = len(naive.pages)
                where = (step, request, head)
                assert current[row, head] == naive.current, where
                assert births[row, head, :count].tolist() == [p.birth for p in naive.pages], where
                assert stamps[row, head, :count].tolist() == [p.stamp for p in naive.pages], where

    def contents(self):
        """The token in each budget slot, read back from the value cache, against the naive one."""
        for row, request in enumerate(self.requests, start=1):
            for head, naive in enumerate(self.naive[row - 1]):
                for place, token in naive.tokens.items():
                    slot = int(self.rows[row, request.prompt_len + place])
                    assert self.value_cache[slot, head, 0] == token
                prompt = self.rows[row, : request.prompt_len].long()
                assert self.key_cache[prompt, head].isnan().all(), "prompt_untouched"


POLICIES = ("raas", "window", "random", "h2o")
REQUESTS = [
    *(
        Request(policy, prompt_len, 64)
        for policy, prompt_len in zip(POLICIES, (1, 17, 33, 5), strict=True)
    ),
    Request("raas", 9, 16),
    Request("raas", 3, 112),
]
MODES = {
    "bound": {"bound_scores": True},
    "exact": {"bound_scores": False},
    "alpha": {"bound_scores": False, "alpha": 0.75},
}


@pytest.mark.parametrize("mode", MODES)
def test_torch_ops_follow_the_naive_rules(mode):
    follow(Layer(REQUESTS, torch_ops, **MODES[mode]), steps=2500)


@pytest.mark.parametrize("mode", MODES)
def test_interpreted_kernels_follow_the_naive_rules(mode):
    follow(Layer(REQUESTS, interpreted(), **MODES[mode]), steps=130)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
def test_compiled_kernels_follow_the_naive_rules(mode):
    follow(Layer(REQUESTS, implementation("cuda"), device="cuda", **MODES[mode]), steps=1000)


def interpreted():
    """The Triton kernels on the CPU; never the torch ops in their place."""
    assert os.environ.get("TRITON_INTERPRET") == "1", (
        "run with TRITON_INTERPRET=1, as make test does"
    )
    return implementation("cpu")


def follow(layer, steps):
    generator = torch.Generator().manual_seed(11)
    for step in range(steps):
        layer.step(step, generator)
    layer.contents()
