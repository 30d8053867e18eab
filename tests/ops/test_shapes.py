"""The kernels against the torch ops over head sizes, head ratios, types and batch shapes.

Under a sanitizer the torch ops run on the CPU, so that it sees little but the kernels:

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 \\
        python3 -m pytest -q -m gpu tests/ops/test_shapes.py \\
        -k "equal_the_torch_ops and (padded or seven or many)"
"""

import os

import pytest
import torch

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
from raas_kernels.layout import BUDGET_UNIT, LONG_PERIOD
from raas_kernels.ops import implementation

POLICIES = (
    *(Policy.RAAS, Policy.DENSE, Policy.H2O, Policy.RAAS),
    *(Policy.RANDOM, Policy.RAAS_PAPER, Policy.WINDOW, Policy.RAAS),
)
OPTIONS = StepOptions(2, layer_offset=5, scaling=1 / 16)


class Rows:
    """Requests at random depths of random budgets, in a batch whose rows follow no slot order."""

    def __init__(self, *, rows, heads, group, dim, units, dtype, **rest):
        self.generator = torch.Generator().manual_seed(rest.get("seed", 0))
        self.dtype, self.dim, self.tokens = dtype, dim, units * BUDGET_UNIT
        self.layers, self.heads, self.group = rest.get("layers", 2), heads, group
        self.programs = rest.get("programs", 5)
        self.slots = 1 + torch.randperm(rows, generator=self.generator)
        self.prompt = torch.randint(1, 40, (rows,), generator=self.generator)
        budgets = torch.randint(1, units + 1, (rows,), generator=self.generator)
        budgets[:1] = units
        self.budgets = budgets * BUDGET_UNIT
        kinds = [POLICIES[i % len(POLICIES)] for i in range(rows)]
        self.policies = torch.tensor([int(kind) for kind in kinds])
        self.periods = torch.tensor(
            [kind.period(int(budget)) for kind, budget in zip(kinds, self.budgets, strict=True)]
        )
        # Enough depth for all to saturate, and one request that begins with its first token.
        depths = torch.rand(rows, generator=self.generator) * 3 * self.budgets
        self.step = depths.long()
        self.step[-1:] = 0
        # Some were retracted lately.
        self.first_steps = (self.step - self.integers((rows,), 0, 30)).clamp(min=0)
        self.padded = rest.get("padded", 0)
        width = 40 + self.tokens
        self.total = 1 + rows * width
        order = 1 + torch.randperm(rows * width, generator=self.generator)
        self.kv_slots = order.view(rows, width)

    def fresh(self):
        """State as after a random past: keys, values, eviction and step buffers, and scratch."""
        rows = len(self.slots)
        shape = (self.layers, rows + 1, self.heads, self.tokens)
        query = (self.heads * self.group, self.dim)
        ages = torch.rand(shape, generator=self.generator).argsort(-1).int()
        steps = torch.zeros(rows + 1, dtype=torch.int32)
        steps[self.slots] = self.step.int()
        births = steps[:, None, None] - 1 - ages
        victims = torch.zeros((*shape[:3], LONG_PERIOD), dtype=torch.int32)
        tables = (self.slots, self.policies, self.budgets)
        for slot, policy, budget in zip(*(table.tolist() for table in tables), strict=True):
            unit = 16 if policy == Policy.RAAS_PAPER else 1
            drawn = torch.rand((*shape[:1], *shape[2:3], budget // unit), generator=self.generator)
            places = drawn.argsort(-1)[..., :LONG_PERIOD].int()
            victims[:, slot, :, : places.shape[2]] = places
        buffers = EvictionBuffers(
            births,
            self.integers(shape, 0, 999).float(),
            self.integers(shape, 1, 99).float(),
            victims,
            self.small((*shape[:2], *query)).float(),
            self.integers((*shape[:2], *query), 0, 9).float(),
        )
        most = (self.layers, rows + self.padded + 3)
        unwritten = {"dtype": torch.int32}
        step_buffers = StepBuffers(
            torch.full((*most, self.heads), -77, **unwritten),
            torch.full((*most, self.heads), -77, **unwritten),
            torch.full((*most, *query), float("nan"), dtype=self.dtype),
        )
        columns = 1 << (self.group - 1).bit_length()
        scratch = ScoreScratch(
            torch.full(most[1:], -77, **unwritten),
            torch.full((1,), -77, **unwritten),
            torch.full((self.programs, self.tokens + 1, columns), float("nan")),
            torch.full((self.programs, self.tokens), float("nan")),
        )
        keys = self.small((self.layers, self.total, self.heads, self.dim))
        values = torch.full_like(keys, float("nan"))
        rows = zip(self.kv_slots, self.prompt, self.step, self.policies, strict=True)
        for slots, prompt, step, policy in rows:
            # Neither what is yet to come may be looked at, nor, but by h2o, the prompt.
            if policy != Policy.H2O:
                keys[:, slots[:prompt]] = float("nan")
            keys[:, slots[prompt + step :]] = float("nan")
        return keys, values, buffers, step_buffers, scratch

    def integers(self, shape, low, high):
        return torch.randint(low, high, shape, generator=self.generator)

    def small(self, shape):
        return self.integers(shape, -3, 4).to(self.dtype)

    def qkv(self):
        """One projection's output for each layer: query, key and value heads in one tensor."""
        shape = (len(self.slots) + self.padded, (self.group + 2) * self.heads, self.dim)
        return [self.small(shape) for _ in range(self.layers)]

    def batch(self):
        held = self.prompt + torch.minimum(self.step + 1, self.budgets)
        dense = self.policies == Policy.DENSE
        locations = self.kv_slots.gather(1, held[:, None] - 1)[:, 0]
        locations = torch.where(dense | (self.step < self.budgets), locations, 0)
        # FlashInfer's table of the same size at every step, so that a graph can be replayed.
        indptr = torch.arange(len(self.slots) + self.padded + 1) * self.kv_slots.shape[1]
        tables = (self.policies, self.prompt, self.budgets, self.periods, self.first_steps)
        columns = (self.slots, self.prompt + self.step, locations)
        # Padded rows of a CUDA graph point to request row 0 and KV slot 0, with length 1.
        padded = [torch.cat([column, torch.zeros(self.padded).long()]) for column in columns]
        filled = [torch.cat([table, torch.zeros(self.padded).long()]).int() for table in tables]
        return DecodeBatch(
            *padded,
            indptr.int(),
            self.kv_slots.flatten().int(),
            RequestTables(*filled),
        )


def run_step(ops, state, qkv, batch, key_caches=None):
    keys, values, buffers, step_buffers, scratch = state
    key_caches = key_caches or KeyCaches.of(list(keys))
    ops.claim_slots(step_buffers, batch, buffers, OPTIONS)
    for layer, projected in enumerate(qkv):
        heads = keys.shape[2]
        # Views, as the model hands them over.
        q, k, v = projected.split((projected.shape[1] - 2 * heads, heads, heads), dim=1)
        of_layer = step_buffers.layer(layer), batch, buffers.layer(layer)
        ops.store_decode(q, k, v, keys[layer], values[layer], *of_layer)
    ops.score_tokens(scratch, key_caches, step_buffers, batch, buffers, OPTIONS)


def copied(value, device):
    """The same tensors, in the same tuples, in new memory of a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device, copy=True)
    parts = [copied(part, device) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else parts


# Relative and absolute errors. Keys and vectors of 16 bits are multiplied exactly, but a mean or a
# variance is rounded to their type first.
ROUNDED = {"weights": 0.02, "value_norms": 1e-5, "query_means": 1e-4, "query_variances": 1e-4}


def assert_same(got, want, rows):
    """Equal bit for bit, but for sums; victims are worth the same, and then become the same."""
    names = ("keys", "values", *EvictionBuffers._fields, *StepBuffers._fields)
    flat = [(*copied(state[:2], "cpu"), *copied(state[2], "cpu"), *copied(state[3], "cpu"))
            for state in (got, want)]  # fmt: skip
    for name, ours, theirs in zip(names, *flat, strict=True):
        # KV slot 0 takes whatever padded and saturated rows are told to drop.
        if name in ("keys", "values"):
            ours, theirs = ours[:, 1:], theirs[:, 1:]
        if name == "victims":
            continue
        rounds = ROUNDED.get(name, 0.0)
        torch.testing.assert_close(
            ours, theirs, rtol=rounds, atol=rounds, equal_nan=True,
            msg=lambda m, n=name: f"{n}: {m}",
        )  # fmt: skip
    ours, theirs = copied(got[2].victims, "cpu"), copied(want[2].victims, "cpu")
    weights = copied(want[2].weights, "cpu")
    for slot, policy, period in zip(
        *(table.tolist() for table in (rows.slots, rows.policies, rows.periods)), strict=True
    ):
        if policy not in (Policy.RAAS, Policy.H2O):
            assert ours[:, slot].equal(theirs[:, slot])
            continue
        a, b = ours[:, slot, :, :period].long(), theirs[:, slot, :, :period].long()
        worth = weights[:, slot]
        torch.testing.assert_close(worth.gather(2, a), worth.gather(2, b), rtol=0.02, atol=0.02)
        assert all(len(set(head)) == period for layer in a.tolist() for head in layer)
    want[2].victims.copy_(got[2].victims)


def compare(device, *, steps=18, **shape):
    """Runs the kernels on the device, and beside them the torch ops."""
    beside = "cpu" if "PYTORCH_NO_CUDA_MEMORY_CACHING" in os.environ else device
    rows = Rows(**shape)
    want = copied(rows.fresh(), beside)
    got = copied(want, device)
    for _ in range(steps):
        inputs = rows.qkv(), rows.batch()
        run_step(torch_ops, want, *copied(inputs, beside))
        run_step(implementation(device), got, *copied(inputs, device))
        assert_same(got, want, rows)
        rows.step += 1


SMALL = {"rows": 9, "heads": 2, "group": 2, "dim": 64, "units": 3, "dtype": torch.float32}
SHAPES = {
    "odd rows": {},
    "empty batch": {"rows": 0},
    "padded rows": {"padded": 3},
    "only padded rows": {"rows": 0, "padded": 2},
    "the least budget": {"units": 1},
    "one head": {"heads": 1, "group": 1},
    "seven queries a head": {"group": 7, "dtype": torch.float16},
    "more queries than a product takes": {"group": 20, "rows": 3},
    "head size 80": {"dim": 80},
    "several tiles": {"dim": 16, "units": 20},
    "one program": {"programs": 1},
    "a program for each head": {"programs": 99},
    "many tokens": {"rows": 3, "dim": 16, "units": 65, "dtype": torch.float16, "steps": 9},
    "bfloat16": {"dtype": torch.bfloat16, "group": 5},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_interpreted_kernels_equal_the_torch_ops(shape):
    assert os.environ.get("TRITON_INTERPRET") == "1", (
        "run with TRITON_INTERPRET=1, as make test does"
    )
    compare("cpu", **{**SMALL, "steps": 9, **SHAPES[shape]})


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
def test_compiled_kernels_equal_the_torch_ops(shape):
    compare("cuda", **{**SMALL, "steps": 20, **SHAPES[shape]})


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("group", [1, 4, 7, 8])
def test_compiled_kernels_at_model_shapes(group, dim, dtype):
    shape = {"rows": 37, "heads": 4, "group": group, "dim": dim, "units": 64, "dtype": dtype}
    compare("cuda", steps=10, **shape)


@pytest.mark.gpu
@pytest.mark.parametrize("units", [1, 2, 17, 63, 65, 100, 257, 1024])
def test_compiled_kernels_over_budgets(units):
    shape = {"rows": 13, "heads": 2, "group": 7, "dim": 64, "dtype": torch.bfloat16}
    compare("cuda", steps=10, units=units, **shape)


@pytest.mark.gpu
def test_a_replayed_graph_equals_the_torch_ops():
    shape = {**SMALL, "dtype": torch.bfloat16, "units": 20, "padded": 2, "group": 7}
    rows = Rows(**shape)
    ops, want = implementation("cuda"), rows.fresh()
    got = copied(want, "cuda")
    static_qkv, static_batch = copied((rows.qkv(), rows.batch()), "cuda")
    run_step(ops, copied(want, "cuda"), static_qkv, static_batch)
    graph, key_caches = torch.cuda.CUDAGraph(), KeyCaches.of(list(got[0]))
    with torch.cuda.graph(graph):
        run_step(ops, got, static_qkv, static_batch, key_caches)
    for _ in range(40):
        # The same memory as at the capture, with the inputs of another step.
        qkv, batch = rows.qkv(), rows.batch()
        for static, fresh in zip((*static_qkv, *static_batch[:5]), (*qkv, *batch[:5]), strict=True):
            static.copy_(fresh)
        graph.replay()
        run_step(torch_ops, want, qkv, batch)
        assert_same(got, want, rows)
        rows.step += 1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_importance_of_real_numbers(dtype):
    """Of keys and moments as a model has them, against float64."""
    rows = Rows(**{**SMALL, "group": 7, "dim": 128, "units": 64, "dtype": dtype, "programs": 28})
    rows.policies[:] = Policy.RAAS
    rows.periods[:] = [Policy.RAAS.period(int(budget)) for budget in rows.budgets]
    rows.step[:] = BUDGET_UNIT * 10**5 - 1  # the last of a period
    keys, _, buffers, step, scratch = rows.fresh()
    keys.normal_(generator=rows.generator)
    buffers.query_means.normal_(std=2, generator=rows.generator)
    buffers.query_variances.normal_(generator=rows.generator).square_()
    options = OPTIONS._replace(scaling=128**-0.5)
    on_device = copied((scratch, step, rows.batch(), buffers), "cuda")
    caches = KeyCaches.of([cache.cuda() for cache in keys])
    implementation("cuda").score_tokens(on_device[0], caches, *on_device[1:], options)
    got, s = on_device[3].weights.cpu().double(), options.scaling
    for slot, kv_slots, prompt, budget in zip(
        rows.slots, rows.kv_slots, rows.prompt, rows.budgets, strict=True
    ):
        key = keys[:, kv_slots[prompt : prompt + budget]].double().transpose(1, 2)[:, :, None]
        mean, variance = (
            table[:, slot].double().view(rows.layers, rows.heads, rows.group, 1, -1)
            for table in (buffers.query_means, buffers.query_variances)
        )
        logits = (s * mean * key).sum(-1) + s**2 / 2 * (variance * key.square()).sum(-1)
        want = logits.log_softmax(-1).amax(2) + buffers.value_norms[:, slot, :, :budget].log()
        error = (got[:, slot, :, :budget] - want).abs().max()
        assert error < (1e-4 if dtype is torch.float32 else 0.1), error


def test_tensors_that_the_kernels_cannot_take_are_refused():
    from raas_kernels.claim_slots import claim_slots
    from raas_kernels.score_tokens import score_tokens
    from raas_kernels.store_decode import store_decode

    rows = Rows(**SMALL)
    keys, values, buffers, step, scratch = rows.fresh()
    batch, key_caches = rows.batch(), KeyCaches.of(list(keys))
    k = torch.zeros(9, 2, 64)
    q = torch.zeros(9, 64, 4).transpose(1, 2)
    caches, layer, state = (keys[0], values[0]), step.layer(0), buffers.layer(0)
    with pytest.raises(ValueError, match=r"q must be \[B, heads, D\] with contiguous heads, got"):
        store_decode(q, k, k, *caches, layer, batch, state)
    q = q.contiguous()
    for name in ("targets", "places"):
        long = layer._replace(**{name: getattr(layer, name).long()})
        with pytest.raises(ValueError, match=rf"{name} must be contiguous torch.int32 \[any, 2\]"):
            store_decode(q, k, k, *caches, long, batch, state)
        few = step._replace(**{name: getattr(step, name)[:, :, :1]})
        with pytest.raises(ValueError, match=f"{name} must be contiguous torch.int32"):
            claim_slots(few, batch, buffers, OPTIONS)
    few = StepBuffers(*(tensor[:, :6].contiguous() for tensor in step))
    with pytest.raises(ValueError, match="must hold the batch's 9 rows, got 6"):
        claim_slots(few, batch, buffers, OPTIONS)
    with pytest.raises(ValueError, match="must hold the batch's 9 rows, got 6"):
        store_decode(q, k, k, *caches, few.layer(0), batch, state)
    half = state._replace(query_means=state.query_means.half())
    with pytest.raises(ValueError, match="query_means must be contiguous"):
        store_decode(q, k, k, *caches, layer, batch, half)
    with pytest.raises(ValueError, match="keys must be 2 caches with contiguous heads of 64"):
        score_tokens(scratch, KeyCaches.of([keys[0]]), step, batch, buffers, OPTIONS)
    for name in ("logits", "scores"):
        wrong = scratch._replace(**{name: getattr(scratch, name)[:, :2]})
        with pytest.raises(ValueError, match=f"{name} must be contiguous"):
            score_tokens(wrong, key_caches, step, batch, buffers, OPTIONS)
    none = ScoreScratch(*(tensor[:0] for tensor in scratch))
    with pytest.raises(ValueError, match=r"scratch must be for 9 rows and for some programs"):
        score_tokens(none, key_caches, step, batch, buffers, OPTIONS)
    half = step._replace(queries=step.queries.half())
    with pytest.raises(ValueError, match="queries must be contiguous"):
        score_tokens(scratch, key_caches, half, batch, buffers, OPTIONS)


def test_key_caches_that_kernels_cannot_read_are_refused():
    keys = torch.zeros(2, 33, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="must begin at multiples of 16 bytes"):
        KeyCaches.of([keys[0], keys[1]])
