"""The kernels against the torch ops over head sizes, head ratios, types and batch shapes.

Under a sanitizer the torch ops run on the CPU, so that it sees little but the kernels:

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 \\
        python3 -m pytest -q -m gpu tests/ops/test_shapes.py \\
        -k "equal_the_torch_ops and (padded or seven or many or alpha)"
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
from raas_kernels.ops import implementation

PAGE = 16
POLICIES = (Policy.RAAS, Policy.DENSE, Policy.H2O, Policy.RAAS, Policy.RANDOM, Policy.WINDOW)


class Rows:
    """Requests at random depths of random budgets, in a batch whose rows follow no slot order."""

    def __init__(self, *, rows, heads, group, dim, pages, dtype, **rest):
        self.generator = torch.Generator().manual_seed(rest.get("seed", 0))
        self.dtype, self.dim, self.pages = dtype, dim, pages
        self.layers, self.heads, self.group = rest.get("layers", 2), heads, group
        self.page = rest.get("page", PAGE)
        self.scored_steps = rest.get("scored_steps", self.page)
        self.programs = rest.get("programs", 5)
        self.slots = 1 + torch.randperm(rows, generator=self.generator)
        self.prompt = torch.randint(1, 40, (rows,), generator=self.generator)
        budgets = torch.randint(1, pages + 1, (rows,), generator=self.generator)
        budgets[:1] = pages
        self.budgets = budgets * self.page
        self.policies = torch.tensor([int(POLICIES[i % len(POLICIES)]) for i in range(rows)])
        self.stamped = (budgets // 2).clamp(min=1)
        # Enough depth for all to saturate, and one request that begins with its first token.
        depths = torch.rand(rows, generator=self.generator) * 3 * self.budgets
        self.step = depths.long()
        self.step[-1:] = 0
        # Some were interrupted lately.
        self.first_steps = (self.step - self.integers((rows,), 0, 30)).clamp(min=0)
        self.padded = rest.get("padded", 0)
        width = 40 + pages * self.page
        self.total = 1 + rows * width
        order = 1 + torch.randperm(rows * width, generator=self.generator)
        self.kv_slots = order.view(rows, width)

    def fresh(self):
        """State as after a random past: keys, values, eviction and step buffers, and scratch."""
        rows = len(self.slots)
        shape = (self.layers, rows + 1, self.heads, self.pages)
        births = torch.rand(shape, generator=self.generator).argsort(-1).int() * self.page
        current = self.integers(shape[:3], 0, self.pages)
        for slot, step, budget in zip(self.slots, self.step, self.budgets, strict=True):
            # A page of the budget; while a request grows it follows from the step.
            current[:, slot] %= budget // self.page
            if step < budget:
                current[:, slot] = step // self.page
        buffers = EvictionBuffers(
            self.integers(shape, 0, 3 * self.pages * self.page).int(),
            births,
            self.integers(shape, 0, 999).float(),
            current.int(),
            self.small((*shape[:2], self.scored_steps, self.heads * self.group, self.dim)),
        )
        most = (self.layers, rows + self.padded + 3)
        step_buffers = StepBuffers(
            torch.full((*most, self.heads), -77, dtype=torch.int32),
            torch.full(most, -77, dtype=torch.int32),
            self.nan(*most, self.heads, self.pages),
            self.nan(*most, self.heads, self.pages),
        )
        scratch = ScoreScratch(
            torch.full(most[1:], -77, dtype=torch.int32),
            torch.full((1,), -77, dtype=torch.int32),
            self.nan(self.programs, self.scored_steps, self.pages),
        )
        keys = self.small((self.layers, self.total, self.heads, self.dim))
        values = torch.full_like(keys, float("nan"))
        for slots, prompt, step in zip(self.kv_slots, self.prompt, self.step, strict=True):
            # Neither the prompt nor what is yet to come may be looked at.
            keys[:, slots[:prompt]] = float("nan")
            keys[:, slots[prompt + step :]] = float("nan")
        return keys, values, buffers, step_buffers, scratch

    def integers(self, shape, low, high):
        return torch.randint(low, high, shape, generator=self.generator)

    def small(self, shape):
        return self.integers(shape, -3, 4).to(self.dtype)

    def nan(self, *shape):
        return torch.full(shape, float("nan"))

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
        tables = (self.policies, self.prompt, self.budgets, self.stamped, self.first_steps)
        columns = (self.slots, self.prompt + self.step, locations)
        # Padded rows of a CUDA graph point to request slot 0 and KV slot 0, with length 1.
        padded = [torch.cat([column, torch.zeros(self.padded).long()]) for column in columns]
        filled = [torch.cat([table, torch.zeros(self.padded).long()]).int() for table in tables]
        return DecodeBatch(
            *padded,
            indptr.int(),
            self.kv_slots.flatten().int(),
            RequestTables(*filled),
        )


def run_step(ops, state, qkv, batch, options, key_caches=None):
    keys, values, buffers, step_buffers, scratch = state
    key_caches = key_caches or KeyCaches.of(list(keys))
    ops.claim_slots(step_buffers, batch, buffers, options)
    for layer, projected in enumerate(qkv):
        heads = keys.shape[2]
        # Views, as the model hands them over.
        q, k, v = projected.split((projected.shape[1] - 2 * heads, heads, heads), dim=1)
        of_layer = step_buffers.layer(layer), buffers.layer(layer)
        ops.store_decode(q, k, v, keys[layer], values[layer], *of_layer, options)
    if options.bound_scores:
        ops.score_pages(scratch, key_caches, batch, buffers, options)
    else:
        ops.stamp_decode(step_buffers, batch, buffers, options)


def copied(value, device):
    """The same tensors, in the same tuples, in new memory of a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device, copy=True)
    parts = [copied(part, device) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else parts


def assert_same(got, want, rounds=0.0):
    """Equal bit for bit, but for masses, which may differ by the relative error ``rounds``."""
    names = ("keys", "values", *EvictionBuffers._fields, *StepBuffers._fields)
    states = copied([got, want], "cpu")
    flat = [(*state[:2], *state[2], *state[3]) for state in states]  # scratch may differ
    for name, ours, theirs in zip(names, *flat, strict=True):
        # Slot 0, of KV or of requests, takes whatever padded and saturated rows are told to drop.
        if name in ("keys", "values", "queries"):
            ours, theirs = ours[:, 1:], theirs[:, 1:]
        tolerance = rounds if name == "mass" else 0.0
        torch.testing.assert_close(
            ours, theirs, rtol=tolerance, atol=0, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


def compare(device, *, bound_scores=True, alpha=None, fade=None, floor=0, steps=18, **shape):
    """Runs the kernels on the device, and beside them the torch ops."""
    beside = "cpu" if "PYTORCH_NO_CUDA_MEMORY_CACHING" in os.environ else device
    if not bound_scores:
        shape["scored_steps"] = 1
    rows = Rows(**shape)
    options = StepOptions(
        *(rows.page, 2, bound_scores, alpha, rows.scored_steps),
        **{"layer_offset": 5, "fade": fade, "floor": floor, "scaling": 1 / 32},
    )
    want = copied(rows.fresh(), beside)
    got = copied(want, device)
    for _ in range(steps):
        if not bound_scores:
            # What attention would leave behind; ties are frequent.
            for name in ("page_scores", "page_mass"):
                ours, theirs = (getattr(state[3], name) for state in (got, want))
                theirs.copy_(rows.integers(theirs.shape, 0, 64) / 64.0)
                ours.copy_(theirs)
        inputs = rows.qkv(), rows.batch()
        run_step(torch_ops, want, *copied(inputs, beside), options)
        run_step(implementation(device), got, *copied(inputs, device), options)
        rows.step += 1
    assert_same(got, want, rounds=1e-5 if fade is not None and bound_scores else 0.0)


SMALL = {"rows": 7, "heads": 2, "group": 2, "dim": 64, "pages": 3, "dtype": torch.float32}
SHAPES = {
    "odd rows": {},
    "empty batch": {"rows": 0},
    "padded rows": {"padded": 3},
    "only padded rows": {"rows": 0, "padded": 2},
    "one page": {"pages": 1},
    "one head": {"heads": 1, "group": 1},
    "seven queries a head": {"group": 7, "dtype": torch.float16},
    "head size 80": {"dim": 80},
    "several tiles": {"dim": 16, "pages": 70},
    "pages that are scored late": {"scored_steps": 32, "steps": 34},
    "one program": {"programs": 1},
    "a program for each head": {"programs": 99},
    "many pages": {"rows": 3, "dim": 16, "pages": 257, "dtype": torch.float16},
    "a softmax of few steps": {"rows": 3, "dim": 16, "pages": 257, "fade": 0.5, "floor": 80},
    "exact scores": {"bound_scores": False},
    "alpha": {"bound_scores": False, "alpha": 0.5, "pages": 37},
    "lrfu": {"bound_scores": False, "fade": 0.5, "floor": 80, "pages": 37},
    "bfloat16": {"dtype": torch.bfloat16, "group": 5},
    "lrfu, bounds": {"fade": 0.5, "floor": 80, "pages": 37},
    "several tiles in a program": {
        **{"page": 2, "scored_steps": 4, "pages": 150, "dim": 16, "steps": 5},
        **{"rows": 3, "group": 7, "dtype": torch.bfloat16, "fade": 0.5, "floor": 80},
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_interpreted_kernels_equal_the_torch_ops(shape):
    assert os.environ.get("TRITON_INTERPRET") == "1", (
        "run with TRITON_INTERPRET=1, as make test does"
    )
    compare("cpu", **{**SMALL, **SHAPES[shape]})


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
def test_compiled_kernels_equal_the_torch_ops(shape):
    compare("cuda", **{**SMALL, "steps": 20, **SHAPES[shape]})


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("group", [1, 4, 7, 8])
def test_compiled_kernels_at_model_shapes(group, dim, dtype):
    shape = {"rows": 37, "heads": 4, "group": group, "dim": dim, "pages": 64, "dtype": dtype}
    compare("cuda", steps=20, **shape)


@pytest.mark.gpu
@pytest.mark.parametrize("pages", [1, 2, 17, 63, 65, 100, 257, 1024])
@pytest.mark.parametrize("bound_scores", [True, False])
def test_compiled_kernels_over_budgets(pages, bound_scores):
    shape = {"rows": 13, "heads": 2, "group": 7, "dim": 64, "dtype": torch.bfloat16}
    compare("cuda", steps=20, pages=pages, bound_scores=bound_scores, **shape)


@pytest.mark.gpu
def test_a_replayed_graph_equals_the_torch_ops():
    shape = {**SMALL, "dtype": torch.bfloat16, "pages": 20, "padded": 2, "group": 7}
    rows, options = Rows(**shape), StepOptions(PAGE, 2, True, None, PAGE)
    ops, want = implementation("cuda"), rows.fresh()
    got = copied(want, "cuda")
    static_qkv, static_batch = copied((rows.qkv(), rows.batch()), "cuda")
    run_step(ops, copied(want, "cuda"), static_qkv, static_batch, options)
    graph, key_caches = torch.cuda.CUDAGraph(), KeyCaches.of(list(got[0]))
    with torch.cuda.graph(graph):
        run_step(ops, got, static_qkv, static_batch, options, key_caches)
    for _ in range(40):
        # The same memory as at the capture, with the inputs of another step.
        qkv, batch = rows.qkv(), rows.batch()
        for static, fresh in zip((*static_qkv, *static_batch[:5]), (*qkv, *batch[:5]), strict=True):
            static.copy_(fresh)
        graph.replay()
        run_step(torch_ops, want, qkv, batch, options)
        rows.step += 1
    assert_same(got, want)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_bounds_of_real_numbers(dtype):
    """Products are exact and sums are float32: no further from float64 than float32 sums are."""
    rows = Rows(**{**SMALL, "group": 7, "dim": 128, "pages": 100, "dtype": dtype, "programs": 28})
    rows.policies[:] = Policy.RAAS
    rows.step[:] = PAGE * 10**5 - 1  # the last of a page
    keys, _, buffers, _, scratch = rows.fresh()
    keys.normal_(generator=rows.generator)
    buffers.queries.normal_(generator=rows.generator)
    on_device = copied((keys, scratch, rows.batch(), buffers), "cuda")
    key_caches = KeyCaches.of(list(on_device[0]))
    options = StepOptions(PAGE, 2, True, None, PAGE)
    implementation("cuda").score_pages(on_device[1], key_caches, *on_device[2:], options)
    # Each head has a program of its own, and all rows are due: [B, Y, H, T, N].
    got = (
        on_device[1].scores.cpu().double().view(len(rows.slots), rows.layers, rows.heads, PAGE, -1)
    )
    for row, (slot, kv_slots, prompt, budget) in enumerate(
        zip(rows.slots, rows.kv_slots, rows.prompt, rows.budgets, strict=True)
    ):
        # [Y, N, page, H, D], then with T and the group between them.
        of_pages = keys[:, kv_slots[prompt : prompt + budget]].double().unflatten(1, (-1, PAGE))
        low, high = (x[:, None, :, :, None] for x in (of_pages.amin(2), of_pages.amax(2)))
        query = buffers.queries[:, slot].double().unflatten(2, (rows.heads, rows.group))[:, :, None]
        products = torch.maximum(query * low, query * high)
        want, scale = products.sum(-1).amax(-1), products.abs().sum(-1).amax(-1)
        error = (got[row, :, :, :, : budget // PAGE].permute(0, 2, 3, 1) - want).abs() / scale
        assert error.max() < rows.dim * 2.0**-24


def test_tensors_that_the_kernels_cannot_take_are_refused():
    from raas_kernels.claim_slots import claim_slots
    from raas_kernels.score_pages import score_pages
    from raas_kernels.stamp_decode import stamp_decode
    from raas_kernels.store_decode import store_decode

    rows = Rows(**SMALL)
    keys, values, buffers, step, scratch = rows.fresh()
    batch, options = rows.batch(), StepOptions(PAGE, 0, True, None, PAGE)
    k = torch.zeros(7, 2, 64)
    q = torch.zeros(7, 64, 4).transpose(1, 2)
    caches, layer, state = (keys[0], values[0]), step.layer(0), buffers.layer(0)
    with pytest.raises(ValueError, match=r"q must be \[B, heads, D\] with contiguous heads, got"):
        store_decode(q, k, k, *caches, layer, state, options)
    for name in ("targets", "query_places"):
        few = layer._replace(**{name: getattr(layer, name)[:6]})
        with pytest.raises(ValueError, match=rf"{name} must be contiguous .* at least 7 rows"):
            store_decode(q.contiguous(), k, k, *caches, few, state, options)
        long = step._replace(**{name: getattr(step, name).long()})
        with pytest.raises(ValueError, match=f"{name} must be contiguous int32"):
            claim_slots(long, batch, buffers, options)
    few = state._replace(queries=state.queries[:, :1])
    with pytest.raises(ValueError, match=r"queries must be contiguous .* rows of \(16, 4, 64\)"):
        store_decode(q.contiguous(), k, k, *caches, layer, few, options)
    key_caches = KeyCaches.of(list(keys))
    half = buffers._replace(queries=buffers.queries.half())
    with pytest.raises(ValueError, match="queries must have the type of the KV cache"):
        score_pages(scratch, key_caches, batch, half, options)
    with pytest.raises(ValueError, match="keys must be 2 caches with contiguous heads of 64"):
        score_pages(scratch, KeyCaches.of([keys[0]]), batch, buffers, options)
    few = buffers._replace(queries=buffers.queries[:, :, :1])
    with pytest.raises(ValueError, match="queries must be contiguous"):
        score_pages(scratch, key_caches, batch, few, options)
    wrong = scratch._replace(scores=scratch.scores[..., :2])
    with pytest.raises(ValueError, match="scores must be contiguous"):
        score_pages(wrong, key_caches, batch, buffers, options)
    none = scratch._replace(scores=scratch.scores[:0])
    with pytest.raises(ValueError, match=r"scratch must be for 7 rows and for some programs"):
        score_pages(none, key_caches, batch, buffers, options)
    wrong = step._replace(page_scores=step.page_scores[..., :2])
    with pytest.raises(ValueError, match="page_scores must be contiguous"):
        stamp_decode(wrong, batch, buffers, options)


def test_key_caches_that_kernels_cannot_read_are_refused():
    keys = torch.zeros(2, 33, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="must begin at multiples of 16 bytes"):
        KeyCaches.of([keys[0], keys[1]])
