"""The ops against the naive rules: places, births and choices, step by step.

Queries, keys and values are small integers. Sums are rounded in another order than the naive rule's
in double precision, so two tokens that are worth the same may change places: what is chosen must be
worth what the naive rule would choose, and then the naive rule goes on with it.
"""

import os
import random
from dataclasses import dataclass, replace

import pytest
import torch

from made_up_rows import poisoned
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
from raas_kernels.layout import LONG_PERIOD
from raas_kernels.ops import implementation
from raas_sglang.policies import POLICIES

FIRST_LAYER, HEAD_OFFSET = 3, 1
SCALING = 1 / 8


@dataclass
class Request:
    policy: str
    prompt_len: int
    budget: int
    first_step: int = 0

    @property
    def kind(self):
        return POLICIES[self.policy].kind


class Engine:
    """A toy engine: a KV cache of a few layers, requests in it, and their naive twins."""

    def __init__(self, requests, ops, layers=1, heads=2, group=2, dim=16, device="cpu"):
        self.requests, self.ops, self.device = requests, ops, device
        self.layers, self.heads, self.group, self.dim = layers, heads, group, dim
        self.options = StepOptions(HEAD_OFFSET, layer_offset=FIRST_LAYER, scaling=SCALING)
        self.slots = list(range(1, len(requests) + 1))
        random.Random(7).shuffle(self.slots)

        def column(values):
            return torch.tensor(list(values), dtype=torch.int32, device=device)

        self.tables = RequestTables(
            policies=column(r.kind for r in requests),
            prompt_lens=column(r.prompt_len for r in requests),
            budgets=column(r.budget for r in requests),
            periods=column(r.kind.period(r.budget) for r in requests),
            first_steps=column(r.first_step for r in requests),
            capacities=column(r.prompt_len + r.budget for r in requests),
        )
        self._poison()
        self._lay_out()
        self.naive = [
            [[self._naive(r, row, layer, head) for head in range(heads)] for row, r in self._rows()]
            for layer in range(layers)
        ]

    def _rows(self):
        return list(enumerate(self.requests))

    def _naive(self, request, row, layer, head):
        if request.policy == "dense":
            return None
        seed = (layer + FIRST_LAYER, head + HEAD_OFFSET)
        prompt = self.key_cache[layer, self.kv_slots[row][: request.prompt_len], head].tolist()
        return POLICIES[request.policy].rule(request.budget, seed, SCALING, prompt)

    def _poison(self):
        """Buffers in which whatever is read before it was written shows."""
        rows = len(self.requests)
        sizes = {
            **{"Y": self.layers, "R": rows + 1, "M": rows + 2, "H": self.heads, "D": self.dim},
            **{"Hq": self.heads * self.group, "N": max(r.budget for r in self.requests)},
            **{"V": LONG_PERIOD, "C": 1 << (self.group - 1).bit_length()},
            "G": 3,  # fewer programs than there are heads to score, so that each takes some
        }
        self.buffers, self.step_buffers, self.scratch = (
            poisoned(kind.zeros(sizes, self.device, torch.float32))
            for kind in (EvictionBuffers, StepBuffers, ScoreScratch)
        )

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
        generator = torch.Generator().manual_seed(3)
        for request, slots in zip(self.requests, self.kv_slots, strict=True):
            # h2o alone reads the prompt's keys; for others what is read of them must show.
            if request.policy == "h2o":
                prompt = slots[: request.prompt_len]
                size = (self.layers, len(prompt), self.heads, self.dim)
                keys = torch.randint(-3, 4, size, generator=generator).float()
                self.key_cache[:, prompt] = keys.to(self.device)
        self.prompt_keys = self.key_cache.clone()
        self.key_caches = KeyCaches.of(list(self.key_cache))

    def batch(self, step):
        positions, locations, indptr, indices = [], [], [0], []
        for request, kv_slots in zip(self.requests, self.kv_slots, strict=True):
            positions.append(request.prompt_len + step)
            grows = step < request.budget
            locations.append(kv_slots[request.prompt_len + step] if grows else 0)
            indices += kv_slots[: request.prompt_len + min(step + 1, request.budget)]
            indptr.append(len(indices))
        return DecodeBatch(
            req_pool_indices=torch.tensor(self.slots, device=self.device),
            positions=torch.tensor(positions, device=self.device),
            out_cache_loc=torch.tensor(locations, device=self.device),
            kv_indptr=torch.tensor(indptr, device=self.device),
            kv_indices=torch.tensor(indices, dtype=torch.int32, device=self.device),
            requests=self.tables,
        )

    def step(self, step, generator):
        """Runs one step through the ops and through the naive heads, and compares them."""

        def small(*shape):
            return torch.randint(-3, 4, shape, generator=generator).float()

        rows, batch, given = len(self.requests), self.batch(step), []
        self.ops.claim_slots(self.step_buffers, batch, self.buffers, self.options)
        for layer in range(self.layers):
            q = small(rows, self.heads * self.group, self.dim)
            k, v = small(rows, self.heads, self.dim), small(rows, self.heads, self.dim)
            v[..., 0] = step + 1  # tells tokens apart
            given.append((q, k, v))
            self.ops.store_decode(
                *(tensor.to(self.device) for tensor in (q, k, v)),
                self.key_cache[layer], self.value_cache[layer],
                self.step_buffers.layer(layer), batch, self.buffers.layer(layer),
            )  # fmt: skip
        self.ops.score_tokens(
            self.scratch, self.key_caches, self.step_buffers, batch, self.buffers, self.options
        )
        for layer, tensors in enumerate(given):
            self.follow(layer, step, *tensors)

    def follow(self, layer, step, q, k, v):
        births, victims = self.buffers.births[layer].cpu(), self.buffers.victims[layer].cpu()
        keys, values = self.key_cache[layer].cpu(), self.value_cache[layer].cpu()
        for row, request in self._rows():
            for head, naive in enumerate(self.naive[layer][row]):
                if naive is None:
                    continue
                where, at = (step, layer, request, head), (self.slots[row], head)
                place = naive.store(step, k[row, head].tolist(), v[row, head].tolist())
                slot = self.kv_slots[row][request.prompt_len + place]
                assert values[slot, head].equal(v[row, head]), where
                assert keys[slot, head].equal(k[row, head]), where
                held = births[at][: len(naive.tokens)].tolist()
                assert held == [naive.tokens[p].birth for p in range(len(held))], where
                if step >= request.first_step:
                    group = q[row, head * self.group : (head + 1) * self.group].tolist()
                    naive.attend(step, group)
                choices = naive.choices(step)
                if choices:
                    self.compare(naive, request, choices, victims[at].tolist(), where)

    def compare(self, naive, request, choices, chosen, where):
        count = request.kind.period(request.budget)
        worth = {place: value for value, place in choices}
        got = [worth[place] for place in chosen[:count]]
        want = [value for value, _ in choices[:count]]
        assert len(set(chosen[:count])) == count, where
        assert got == pytest.approx(want, rel=1e-4, abs=1e-4), where
        naive.adopt(chosen[:count])

    def contents(self):
        """The token in each place, read back from the value cache, against the naive one."""
        for layer, rows in enumerate(self.naive):
            for row, request in self._rows():
                for head, naive in enumerate(rows[row]):
                    if naive is None:
                        continue
                    for place, token in naive.tokens.items():
                        slot = self.kv_slots[row][request.prompt_len + place]
                        assert self.value_cache[layer, slot, head, 0] == token.birth + 1
                    prompt = self.kv_slots[row][: request.prompt_len]
                    torch.testing.assert_close(
                        self.key_cache[layer, prompt, head],
                        self.prompt_keys[layer, prompt, head],
                        equal_nan=True, rtol=0, atol=0,
                        msg="prompt_untouched",
                    )  # fmt: skip


EVICTING = [name for name, info in POLICIES.items() if info.kind is not Policy.DENSE]
REQUESTS = [
    *(Request(name, 1 + 13 * i, 48) for i, name in enumerate(EVICTING)),
    *(Request(name, 9, 16) for name in EVICTING),
    Request("dense", 4, 320),
    Request("raas", 3, 80, first_step=21),
]
# Of h2o and raas-paper each step is scored, which takes the interpreter its time.
SMALL_REQUESTS = [replace(r, budget=32) for r in REQUESTS if r.budget in (48, 80)]


@pytest.mark.parametrize("group", [1, 2, 3])
def test_torch_ops_follow_the_naive_rules(group):
    follow(Engine(REQUESTS, torch_ops, layers=2, group=group), steps=300)


@pytest.mark.parametrize("group", [1, 3])
def test_interpreted_kernels_follow_the_naive_rules(group):
    assert os.environ.get("TRITON_INTERPRET") == "1", (
        "run with TRITON_INTERPRET=1, as make test does"
    )
    # One head: the interpreter takes its time for each, and `test_shapes` has two.
    engine = Engine(SMALL_REQUESTS, implementation("cpu"), heads=1, group=group)
    follow(engine, steps=70)


@pytest.mark.gpu
@pytest.mark.parametrize("group", [1, 2, 3])
def test_compiled_kernels_follow_the_naive_rules(group):
    engine = Engine(REQUESTS, implementation("cuda"), layers=2, group=group, device="cuda")
    follow(engine, steps=300)


def follow(engine, steps):
    generator = torch.Generator().manual_seed(11)
    for step in range(steps):
        engine.step(step, generator)
    engine.contents()
