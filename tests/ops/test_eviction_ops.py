"""The ops against the naive rules: victims, timestamps and slots bit for bit, step by step.

Bounds are scored for several steps at once. Where these are the steps of one page, the naive rule
scores each step as it comes, as the paper does: the outcome must be the same.
"""

import os
import random
from dataclasses import dataclass, replace

import pytest
import torch

from naive_policy import NaiveHead
from raas_kernels import (
    DecodeBatch,
    EvictionBuffers,
    KeyCaches,
    Policy,
    RequestTables,
    ScoreScratch,
    StepBuffers,
    StepOptions,
    torch_ops,
)
from raas_kernels.ops import implementation

FIRST_LAYER, HEAD_OFFSET = 3, 1
SCALING = 1 / 32


@dataclass
class Request:
    policy: str
    prompt_len: int
    budget: int
    first_step: int = 0


class Engine:
    """A toy engine: a KV cache of a few layers, requests in it, and their naive twins."""

    def __init__(
        self, requests, ops, page=16, layers=1, heads=2, group=2, dim=16, device="cpu", **options
    ):
        self.requests, self.ops, self.device = requests, ops, device
        self.layers, self.heads, self.group, self.dim = layers, heads, group, dim
        self.page, ratio = page, 0.5
        fade, floor = options.get("fade"), options.get("floor", 0)
        bound_scores = options.get("bound_scores", True)
        self.options = StepOptions(
            page,
            HEAD_OFFSET,
            bound_scores,
            options.get("alpha"),
            options.get("scored_steps", page) if bound_scores else 1,
            layer_offset=FIRST_LAYER,
            fade=fade,
            floor=floor,
            scaling=SCALING,
        )
        self.slots = list(range(1, len(requests) + 1))
        random.Random(7).shuffle(self.slots)
        self.tables = RequestTables(
            *(
                torch.tensor(values, dtype=torch.int32, device=device)
                for values in (
                    [Policy[r.policy.upper()] for r in requests],
                    [r.prompt_len for r in requests],
                    [r.budget for r in requests],
                    [max(1, int(ratio * (r.budget // page))) for r in requests],
                    [r.first_step for r in requests],
                )
            )
        )
        self._poison()
        self._lay_out()

        def head_of(request, layer, head):
            place, by_mass = (layer, head + HEAD_OFFSET), fade is not None
            return NaiveHead(request.policy, request.budget, page, ratio, place, floor, by_mass)

        self.naive = [
            [[head_of(r, layer, head) for head in range(heads)] for r in requests]
            for layer in range(FIRST_LAYER, FIRST_LAYER + layers)
        ]

    def _poison(self):
        """Buffers in which whatever is read before it was written shows."""
        rows, pages = len(self.requests), max(r.budget for r in self.requests) // self.page
        shape = (self.layers, rows + 1, self.heads, pages)
        integers = {"dtype": torch.int32, "device": self.device}

        def nan(*size):
            return torch.full(size, float("nan"), device=self.device)

        self.buffers = EvictionBuffers(
            torch.full(shape, -77, **integers),
            torch.full(shape, -77, **integers),
            nan(*shape),
            torch.full(shape[:3], -77, **integers),
            nan(*shape[:2], self.options.scored_steps, self.heads * self.group, self.dim),
        )
        most = (self.layers, rows + 2)
        self.step_buffers = StepBuffers(
            torch.full((*most, self.heads), -77, **integers),
            torch.full(most, -77, **integers),
            nan(*most, self.heads, pages),
            nan(*most, self.heads, pages),
        )
        # Fewer programs than there are heads to score, so that each takes some.
        self.scratch = ScoreScratch(
            torch.full((rows,), -77, **integers),
            torch.full((1,), -77, **integers),
            nan(3, self.options.scored_steps, pages),
        )
        self.queries = {}

    def _lay_out(self):
        total = 1 + sum(r.prompt_len + r.budget for r in self.requests)
        order = list(range(1, total))
        random.Random(5).shuffle(order)
        self.kv_slots = []
        for request in self.requests:
            count = request.prompt_len + request.budget
            self.kv_slots.append(order[:count])
            order = order[count:]
        shape = (self.layers, total, self.heads, self.dim)
        self.key_cache = torch.full(shape, float("nan"), device=self.device)
        self.value_cache = self.key_cache.clone()
        self.key_caches = KeyCaches.of(list(self.key_cache))

    def batch(self, step):
        positions, locations, indptr, indices = [], [], [0], []
        for request, kv_slots in zip(self.requests, self.kv_slots, strict=True):
            positions.append(request.prompt_len + step)
            grows = step < request.budget
            locations.append(kv_slots[request.prompt_len + step] if grows else 0)
            indices += kv_slots[: request.prompt_len + min(step + 1, request.budget)]
            indptr.append(len(indices))
        columns = (self.slots, positions, locations, indptr)
        return DecodeBatch(
            *(torch.tensor(column, device=self.device) for column in columns),
            torch.tensor(indices, dtype=torch.int32, device=self.device),
            self.tables,
        )

    def step(self, step, generator):
        """Runs one step through the ops and through the naive heads, and compares the slots."""

        def small(*shape):
            return torch.randint(-3, 4, shape, generator=generator).float()

        rows, batch, given = len(self.requests), self.batch(step), []
        state = self.step_buffers, batch, self.buffers, self.options
        self.ops.claim_slots(*state)
        for layer in range(self.layers):
            q, k = small(rows, self.heads * self.group, self.dim), small(rows, self.heads, self.dim)
            given.append((q, k))
            args = (t.to(self.device) for t in (q, k, torch.full_like(k, float(step + layer))))
            self.ops.store_decode(
                *args, self.key_cache[layer], self.value_cache[layer],
                self.step_buffers.layer(layer), self.buffers.layer(layer), self.options,
            )  # fmt: skip
        if self.options.bound_scores:
            self.ops.score_pages(self.scratch, self.key_caches, *state[1:])
        else:
            self.attend(rows, generator)
            self.ops.stamp_decode(*state)
        for layer, (q, k) in enumerate(given):
            self.follow(layer, step, q, k)
        self.compare(step)

    def attend(self, rows, generator):
        """Makes up what attention would leave behind."""
        for tensor in self.step_buffers[2:]:
            # Multiples of 1/64 add up exactly in any order.
            made_up = torch.randint(0, 64, tensor[:, :rows].shape, generator=generator) / 64.0
            tensor[:, :rows] = made_up.to(self.device)

    def follow(self, layer, step, q, k):
        keys, values = self.key_cache[layer].cpu(), self.value_cache[layer].cpu()
        scores = self.step_buffers.page_scores[layer].cpu()
        mass = self.step_buffers.page_mass[layer].cpu()
        for row, request in enumerate(self.requests):
            for head, naive in enumerate(self.naive[layer][row]):
                place = naive.store(step, k[row, head].tolist())
                slot = self.kv_slots[row][request.prompt_len + place]
                assert values[slot, head].eq(step + layer).all(), (step, request, head)
                assert keys[slot, head].equal(k[row, head])
                group = q[row, head * self.group : (head + 1) * self.group].tolist()
                if self.options.bound_scores and naive.policy == "raas":
                    self.queries.setdefault(naive, []).append(group)
                    self.score(naive, step, request.first_step)
                elif not self.options.bound_scores:
                    self.stamp_exactly(naive, request, step, scores[row, head], mass[row, head])

    def stamp_exactly(self, naive, request, step, scores, mass):
        if naive.policy == "h2o":
            for place, page in enumerate(naive.pages):
                page.mass += float(mass[place])
        elif naive.policy == "raas" and step >= request.first_step:
            self.stamp(naive, step, {p: float(scores[p]) for p in range(len(naive.pages))})

    def score(self, naive, step, first_step):
        """Each step as it comes, or all at once those whose scores the ops leave for later."""
        count = self.options.scored_steps
        late = count > self.page
        if late and (step + 1) % count:
            return
        begin = step + 1 - count
        for at in range(begin, step + 1) if late else [step]:
            pages = enumerate(naive.pages)
            old = [place for place, page in pages if not late or page.birth < begin]
            if at >= first_step:
                group = self.queries[naive][at]
                self.stamp(naive, at, {place: naive.bound(place, group) for place in old})

    def stamp(self, naive, step, given):
        if self.options.fade is not None:
            gained = naive.shares(given, SCALING) if self.options.bound_scores else given
            naive.gather_fading(gained, self.options.fade)
        elif self.options.alpha is not None:
            naive.stamp_above(step, given, self.options.alpha)
        else:
            naive.stamp_top(step, given)

    def compare(self, step):
        stamps, births, mass, current = (tensor.cpu() for tensor in self.buffers[:4])
        for layer, rows in enumerate(self.naive):
            for slot, request, heads in zip(self.slots, self.requests, rows, strict=True):
                for head, naive in enumerate(heads):
                    at, where = (layer, slot, head), (step, layer, request, head)
                    pages = naive.pages
                    assert current[at] == naive.current, where
                    assert births[at][: len(pages)].tolist() == [p.birth for p in pages], where
                    if request.policy == "raas" and (step + 1) % self.options.scored_steps:
                        continue  # the ops score these steps later
                    assert stamps[at][: len(pages)].tolist() == [p.stamp for p in pages], where
                    self.compare_masses(pages, mass[at][: len(pages)].tolist(), where)

    def compare_masses(self, pages, masses, where):
        if self.options.fade is None or not self.options.bound_scores:
            assert masses == [page.mass for page in pages], where
            return
        # A softmax rounds; from the same masses on, victims must be the same ones again.
        assert masses == pytest.approx([page.mass for page in pages], rel=1e-5, abs=1e-30), where
        for page, mass in zip(pages, masses, strict=True):
            page.mass = mass

    def contents(self):
        """The token in each budget slot, read back from the value cache, against the naive one."""
        for layer, rows in enumerate(self.naive):
            for row, request in enumerate(self.requests):
                for head, naive in enumerate(rows[row]):
                    for place, token in naive.tokens.items():
                        slot = self.kv_slots[row][request.prompt_len + place]
                        assert self.value_cache[layer, slot, head, 0] == token + layer
                    prompt = self.kv_slots[row][: request.prompt_len]
                    keys = self.key_cache[layer, prompt, head]
                    assert keys.isnan().all(), "prompt_untouched"


POLICIES = ("raas", "window", "random", "h2o")
REQUESTS = [
    *(
        Request(policy, prompt_len, 48)
        for policy, prompt_len in zip(POLICIES, (1, 17, 33, 5), strict=True)
    ),
    Request("raas", 9, 16),
    Request("raas", 3, 80, first_step=37),
]
SMALL_REQUESTS = [replace(request, budget=min(request.budget, 48)) for request in REQUESTS]
MODES = {
    "bound": {"bound_scores": True},
    "bound, late": {"bound_scores": True, "page": 4, "scored_steps": 8},
    "exact": {"bound_scores": False},
    "alpha": {"bound_scores": False, "alpha": 0.75},
    # A fade that is a power of two rounds the same with and without a fused addition.
    "lrfu": {"bound_scores": False, "fade": 0.5},
    "lrfu, bounds": {"bound_scores": True, "fade": 0.875, "floor": 12, "page": 4},
    "lrfu, bounds, late": {"bound_scores": True, "fade": 0.875, "page": 2, "scored_steps": 8},
    "lrfu, floor": {"bound_scores": False, "fade": 0.5, "floor": 16},
    "lrfu, pages of 4": {"bound_scores": False, "fade": 0.5, "floor": 12, "page": 4},
    "lrfu, pages of 1": {"bound_scores": False, "fade": 0.25, "floor": 5, "page": 1},
    # More than half of every budget, so that the half rules.
    "lrfu, half": {"bound_scores": False, "fade": 0.5, "floor": 96, "page": 4},
    "exact, floor": {"bound_scores": False, "floor": 24, "page": 4},
}


@pytest.mark.parametrize("mode", MODES)
def test_torch_ops_follow_the_naive_rules(mode):
    follow(Engine(REQUESTS, torch_ops, layers=2, **MODES[mode]), steps=300)


@pytest.mark.parametrize("mode", MODES)
def test_interpreted_kernels_follow_the_naive_rules(mode):
    assert os.environ.get("TRITON_INTERPRET") == "1", (
        "run with TRITON_INTERPRET=1, as make test does"
    )
    # One head: the interpreter takes its time for each, and `test_shapes` has two.
    follow(Engine(SMALL_REQUESTS, implementation("cpu"), heads=1, **MODES[mode]), steps=82)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
def test_compiled_kernels_follow_the_naive_rules(mode):
    engine = Engine(REQUESTS, implementation("cuda"), layers=2, device="cuda", **MODES[mode])
    follow(engine, steps=600)


def follow(engine, steps):
    generator = torch.Generator().manual_seed(11)
    for step in range(steps):
        engine.step(step, generator)
    engine.contents()
