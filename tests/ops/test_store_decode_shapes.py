"""The kernel against the torch op over head sizes, head ratios, types and batch shapes."""

import os

import pytest
import torch

from raas_kernels import DecodeBatch, EvictionBuffers, Policy, RequestTables, torch_ops
from raas_kernels.layout import StepOptions
from raas_kernels.ops import implementation

PAGE = 16
POLICIES = (Policy.RAAS, Policy.DENSE, Policy.H2O, Policy.RAAS, Policy.RANDOM, Policy.WINDOW)


class Rows:
    """A batch of requests at random depths, and a copy of the state for each implementation."""

    def __init__(self, device, *, rows, heads, group, dim, budget, dtype, padded=0, seed=0):
        self.generator = torch.Generator().manual_seed(seed)
        self.device, self.dtype, self.dim = device, dtype, dim
        self.heads, self.group, self.budget = heads, group, budget
        slots, width = rows + 1, 40 + budget
        prompt = torch.randint(1, 40, (slots,), generator=self.generator)
        policies = [0, *(POLICIES[i % len(POLICIES)] for i in range(rows))]
        # Padded rows of a CUDA graph point to request slot 0 and KV slot 0, with length 1.
        self.requests = torch.tensor([*range(1, rows + 1), *[0] * padded], dtype=torch.int64)
        self.tables = RequestTables(
            *(
                torch.as_tensor(column, dtype=torch.int32, device=device)
                for column in (
                    policies,
                    prompt,
                    [budget] * slots,
                    [budget // PAGE // 2 or 1] * slots,
                )
            )
        )
        table = torch.randperm(slots * width, generator=self.generator)[: slots * width] + 1
        self.req_to_token = table.view(slots, width).int().to(device)
        self.total = slots * width + 1
        self.prompt = prompt
        self.step = torch.randint(0, 3 * budget, (slots,), generator=self.generator)

    def fresh(self):
        """State as after a random past: caches, buffers."""
        slots, pages = self.tables.policies.shape[0], self.budget // PAGE
        shape = (slots, self.heads, pages)
        # While a request grows, the page being filled follows from the step.
        growing = (self.step < self.budget)[:, None].to(self.device)
        filled = (self.step // PAGE)[:, None].to(self.device)
        current = torch.where(growing, filled, self.integers(shape[:2], 0, pages))
        births = torch.rand(shape, generator=self.generator).argsort(-1).int() * PAGE
        buffers = EvictionBuffers(
            self.integers(shape, 0, 3 * self.budget).int(),
            births.to(self.device),
            self.integers(shape, 0, 999).float(),
            current.int(),
            self.integers((*shape, self.dim), -3, 0).to(self.dtype),
            self.integers((*shape, self.dim), 0, 4).to(self.dtype),
        )
        cache = torch.full((self.total, self.heads, self.dim), float("nan"), dtype=self.dtype)
        return cache.to(self.device), cache.clone().to(self.device), buffers

    def integers(self, shape, low, high):
        return torch.randint(low, high, shape, generator=self.generator).to(self.device)

    def batch(self):
        step, prompt = self.step[self.requests], self.prompt[self.requests]
        columns = prompt + torch.where(step < self.budget, step, 0)
        locations = self.req_to_token.cpu()[self.requests, columns].long()
        live = self.requests > 0
        seq_lens = torch.where(live, prompt + step + 1, 1)
        locations = torch.where(live & (step < self.budget), locations, 0)
        parts = (self.requests, seq_lens, locations)
        return DecodeBatch(*(part.to(self.device) for part in parts), self.req_to_token)


def compare(device, ops, *, bound_scores=True, steps=3, **shape):
    rows = Rows(device, **shape)
    state = rows.fresh()
    ours = [state[0].clone(), state[1].clone(), EvictionBuffers(*(t.clone() for t in state[2]))]
    options = StepOptions(PAGE, 5, 2, bound_scores)
    count = len(rows.requests)
    for _ in range(steps):
        heads, dim = rows.heads, rows.dim
        q = rows.integers((count, heads * rows.group, dim), -3, 4).to(rows.dtype)
        # Views into one projection's output, as the model hands them over.
        kv = rows.integers((count, 2 * heads * dim), -3, 4).to(rows.dtype)
        k = kv[:, : heads * dim].unflatten(1, (heads, dim))
        v = kv[:, heads * dim :].unflatten(1, (heads, dim))
        batch = rows.batch()
        torch_ops.store_decode(q, k, v, *state[:2], batch, rows.tables, state[2], options)
        ops.store_decode(q, k, v, *ours[:2], batch, rows.tables, ours[2], options)
        rows.step += 1
    names = ("keys", "values", *EvictionBuffers._fields)
    pairs = zip((*state[:2], *state[2]), (*ours[:2], *ours[2]), strict=True)
    for name, (want, got) in zip(names, pairs, strict=True):
        # Slot 0 takes whatever padded and saturated rows are told to drop.
        start = 1 if name in ("keys", "values") else 0
        torch.testing.assert_close(
            got[start:], want[start:], rtol=0, atol=0, equal_nan=True, msg=lambda m, n=name: n + m
        )


SMALL = {"rows": 7, "heads": 2, "group": 2, "dim": 64, "budget": 48, "dtype": torch.float32}
SHAPES = {
    "odd rows": {},
    "empty batch": {"rows": 0},
    "padded rows": {"padded": 3},
    "only padded rows": {"rows": 0, "padded": 2},
    "one page": {"budget": 16},
    "one head": {"heads": 1, "group": 1},
    "seven queries a head": {"group": 7, "dtype": torch.bfloat16},
    "head size 80": {"dim": 80},
    "exact scores": {"bound_scores": False},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_interpreted_kernel_equals_the_torch_op(shape):
    assert os.environ.get("TRITON_INTERPRET") == "1", (
        "run with TRITON_INTERPRET=1, as make test does"
    )
    compare("cpu", implementation("cpu"), **{**SMALL, **SHAPES[shape]})


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
def test_compiled_kernel_equals_the_torch_op(shape):
    compare("cuda", implementation("cuda"), steps=40, **{**SMALL, **SHAPES[shape]})


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("group", [1, 4, 7, 8])
def test_compiled_kernel_at_model_shapes(group, dim, dtype):
    shape = {"rows": 67, "heads": 4, "group": group, "dim": dim, "budget": 1024, "dtype": dtype}
    compare("cuda", implementation("cuda"), steps=20, **shape)


def test_tensors_that_the_kernel_cannot_take_are_refused():
    from raas_kernels.store_decode import store_decode

    rows = Rows("cpu", **SMALL)
    state = rows.fresh()
    k = torch.zeros(7, 2, 64)
    q = torch.zeros(7, 64, 4).transpose(1, 2)
    with pytest.raises(ValueError, match=r"q must be \[B, heads, D\] with contiguous heads, got"):
        store_decode(
            q, k, k, *state[:2], rows.batch(), rows.tables, state[2], StepOptions(PAGE, 0, 0, True)
        )
