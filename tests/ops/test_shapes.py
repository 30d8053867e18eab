"""The kernels against the torch ops over head sizes, head ratios, types and batch shapes.

Under a sanitizer the torch ops run on the CPU, so that it sees little but the kernels:

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 \\
        python3 -m pytest -q -m gpu tests/ops/test_shapes.py \\
        -k "equal_the_torch_ops and (padded or seven or many)"
"""

import os
from dataclasses import fields, is_dataclass

import pytest
import torch

from made_up_rows import OPTIONS, SMALL, Rows
from raas_kernels import KeyCaches, KVScales, Policy, torch_ops
from raas_kernels.layout import (
    AGEING,
    BONUS,
    BUDGET_UNIT,
    LARGEST_SPREAD,
    LEAST_SPREAD,
    UNSCALED,
)
from raas_kernels.ops import implementation


def run_step(ops, state, qkv, batch, key_caches=None, scales=()):
    keys, values, buffers, step_buffers, scratch = state
    key_caches = key_caches or KeyCaches.of(list(keys), scales)
    ops.claim_slots(step_buffers, batch, buffers, OPTIONS)
    for layer, projected in enumerate(qkv):
        heads = keys.shape[2]
        # Views, as the model hands them over.
        q, k, v = projected.split((projected.shape[1] - 2 * heads, heads, heads), dim=1)
        of_layer = step_buffers.layer(layer), batch, buffers.layer(layer)
        of_layer += (scales[layer] if scales else UNSCALED,)
        ops.store_decode(q, k, v, keys[layer], values[layer], *of_layer)
    ops.score_tokens(scratch, key_caches, step_buffers, batch, buffers, OPTIONS)


def copied(value, device):
    """The same tensors, in the same records and lists, in new memory of a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device, copy=True)
    if is_dataclass(value):
        return type(value)(**{name: copied(part, device) for name, part in parts(value)})
    return [copied(part, device) for part in value]


def parts(record):
    return [(field.name, getattr(record, field.name)) for field in fields(record)]


# Relative and absolute errors of sums.
ROUNDED = {"value_norms": 1e-5}
ROUNDED |= dict.fromkeys(("query_means", "query_variances", "key_means", "key_variances"), 1e-4)
WEIGHT = 1e-4
# Of raas on a GPU, with keys of at most 16 bits. A mean, a variance and the square of a key's
# distance from the mean key are rounded to 16 bits first; so are scaled queries of the others, but
# where the scaling is a power of two, as here.
IMPORTANCE = 0.05


def assert_same(got, want, rows):
    """Equal bit for bit, but for sums; victims are worth the same, and then become the same."""
    ours_by_name, theirs_by_name = (
        {"keys": keys, "values": values, **buffers.tensors(), **step.tensors()}
        for keys, values, buffers, step, _ in (got, want)
    )
    for name, ours in ours_by_name.items():
        ours, theirs = ours.cpu(), theirs_by_name[name].cpu()
        # KV slot 0 takes whatever padded and saturated rows are told to drop.
        if name in ("keys", "values"):
            ours, theirs = ours[:, 1:].float(), theirs[:, 1:].float()
        if name in ("weights", "victims"):
            continue
        rounds = ROUNDED.get(name, 0.0)
        torch.testing.assert_close(
            ours, theirs, rtol=rounds, atol=rounds, equal_nan=True,
            msg=lambda m, n=name: f"{n}: {m}",
        )  # fmt: skip
    is_rounded = got[0].is_cuda and rows.dtype.itemsize == 2
    weights, theirs_weights = (each[2].weights.cpu() for each in (got, want))
    ours, theirs = (each[2].victims.cpu() for each in (got, want))
    for slot, policy, period in zip(
        *(table.tolist() for table in (rows.slots, rows.policies, rows.periods)), strict=True
    ):
        rounds = IMPORTANCE if is_rounded and policy == Policy.RAAS else WEIGHT
        worth = theirs_weights[:, slot]
        torch.testing.assert_close(
            weights[:, slot], worth, rtol=rounds, atol=rounds, equal_nan=True,
            msg=lambda m, of=policy: f"weights of policy {of}: {m}",
        )  # fmt: skip
        if policy not in (Policy.RAAS, Policy.H2O):
            assert ours[:, slot].equal(theirs[:, slot])
            continue
        a, b = ours[:, slot, :, :period].long(), theirs[:, slot, :, :period].long()
        torch.testing.assert_close(worth.gather(2, a), worth.gather(2, b), rtol=rounds, atol=rounds)
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
        run_step(torch_ops, want, *copied(inputs, beside), scales=rows.scales)
        run_step(implementation(device), got, *copied(inputs, device), scales=rows.scales)
        assert_same(got, want, rows)
        rows.step += 1


# No quotient is halfway between two numbers of float8: the interpreter would round it otherwise.
FLOAT8 = {
    "kv_dtype": torch.float8_e4m3fn,
    "scales": (KVScales(0.5, 0.3), KVScales(None, 0.25)),
}
TRAINED = {**FLOAT8, "scales": (KVScales(0.37, 0.21), KVScales(0.042, None))}

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
    "head size 256": {"dim": 256, "group": 8, "dtype": torch.bfloat16},
    "several tiles": {"dim": 16, "units": 20},
    "one program": {"programs": 1},
    "a program for each head": {"programs": 99},
    "many tokens": {"rows": 3, "dim": 16, "units": 65, "dtype": torch.float16, "steps": 9},
    "bfloat16": {"dtype": torch.bfloat16, "group": 5},
    "float8": {"dtype": torch.bfloat16, **FLOAT8},
    "float8 and queries of float16": {"dtype": torch.float16, "group": 7, **FLOAT8},
    "float8 as it is": {"dtype": torch.bfloat16, "kv_dtype": torch.float8_e4m3fn, "padded": 2},
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
@pytest.mark.parametrize("cache", [{}, FLOAT8])
def test_compiled_kernels_over_budgets(units, cache):
    shape = {"rows": 13, "heads": 2, "group": 7, "dim": 64, "dtype": torch.bfloat16, **cache}
    compare("cuda", steps=10, units=units, **shape)


@pytest.mark.gpu
@pytest.mark.parametrize("cache", [{}, FLOAT8])
def test_a_replayed_graph_equals_the_torch_ops(cache):
    shape = {**SMALL, "dtype": torch.bfloat16, "units": 20, "padded": 2, "group": 7, **cache}
    rows = Rows(**shape)
    ops, want = implementation("cuda"), rows.fresh()
    got = copied(want, "cuda")
    static_qkv, static_batch = copied((rows.qkv(), rows.batch()), "cuda")
    run_step(ops, copied(want, "cuda"), static_qkv, static_batch, scales=rows.scales)
    graph, key_caches = torch.cuda.CUDAGraph(), KeyCaches.of(list(got[0]), rows.scales)
    with torch.cuda.graph(graph):
        run_step(ops, got, static_qkv, static_batch, key_caches, rows.scales)
    for _ in range(40):
        # The same memory as at the capture, with the inputs of another step.
        qkv, batch = rows.qkv(), rows.batch()
        for static, fresh in zip(static_qkv, qkv, strict=True):
            static.copy_(fresh)
        for name, fresh in parts(batch):
            if name != "requests":  # which stay as they are
                getattr(static_batch, name).copy_(fresh)
        graph.replay()
        run_step(torch_ops, want, qkv, batch, scales=rows.scales)
        assert_same(got, want, rows)
        rows.step += 1


def error_of_importance(device, dtype, **cache):
    """The largest error, against float64, over keys and moments as a model has them."""
    units = 64 if device == "cuda" else 5
    rows = Rows(**{**SMALL, "group": 7, "dim": 128, "units": units, "dtype": dtype, **cache})
    rows.policies[:] = Policy.RAAS
    periods = [Policy.RAAS.period(budget) for budget in rows.budgets.tolist()]
    rows.periods[:] = torch.tensor(periods)
    rows.step[:] = BUDGET_UNIT * 10**5 - 1  # the last of a period
    keys, _, buffers, step, scratch = rows.fresh()
    keys = torch.randn(keys.shape, generator=rows.generator).to(keys.dtype)
    scales = [each.k_scale or 1.0 for each in rows.scales or [UNSCALED] * rows.layers]
    buffers.query_means.normal_(std=2, generator=rows.generator)
    buffers.query_variances.normal_(generator=rows.generator).square_()
    # So that the spreads of heads are on both sides of their bounds, and between them.
    width = torch.rand(buffers.key_variances[..., :1].shape, generator=rows.generator)
    buffers.key_variances.copy_(10 ** (3 * width - 1.5))
    # The keys of a head have much in common, as those of models with a bias.
    shared = torch.randn(buffers.key_means[:, :1].shape, generator=rows.generator) * 3
    buffers.key_means.copy_(shared + torch.randn(shared.shape, generator=rows.generator) / 9)
    shared /= torch.tensor(scales)[:, None, None, None]
    keys = (keys.float() + shared).to(keys.dtype)
    options = OPTIONS._replace(scaling=128**-0.5)
    on_device = copied((scratch, step, rows.batch(), buffers), device)
    caches = KeyCaches.of([cache.to(device) for cache in keys], rows.scales)
    implementation(device).score_tokens(on_device[0], caches, *on_device[1:], options)
    got, s, errors = on_device[3].weights.cpu().double(), options.scaling, []
    tables = (rows.slots, rows.kv_slots, rows.prompt, rows.budgets, rows.step)
    for slot, kv_slots, prompt, budget, now in zip(*tables, strict=True):
        key = keys[:, kv_slots[prompt : prompt + budget]].double().transpose(1, 2)[:, :, None]
        key = key * torch.tensor(scales).double()[:, None, None, None, None]
        key = key - buffers.key_means[:, slot].double()[:, :, None, None]
        mean, variance = (
            table[:, slot].double().view(rows.layers, rows.heads, rows.group, 1, -1)
            for table in (buffers.query_means, buffers.query_variances)
        )
        of_keys = buffers.key_variances[:, slot].double()[:, :, None, None]
        common = s**2 / 2 * (variance * of_keys).sum(-1)
        spread = (BONUS / common).clamp(LEAST_SPREAD, LARGEST_SPREAD)
        logits = (s * mean * key).sum(-1) + spread * s**2 / 2 * (variance * key.square()).sum(-1)
        norms, births = (
            table[:, slot, :, :budget].double() for table in (buffers.value_norms, buffers.births)
        )
        age = (now + 1 - births) / budget
        want = logits.log_softmax(-1).logsumexp(2) + norms.log() - AGEING * age
        errors.append((got[:, slot, :, :budget] - want).abs().max())
    return max(errors)


def test_importance_of_real_numbers():
    assert os.environ.get("TRITON_INTERPRET") == "1", (
        "run with TRITON_INTERPRET=1, as make test does"
    )
    assert error_of_importance("cpu", torch.float32) < 1e-4
    assert error_of_importance("cpu", torch.bfloat16, **TRAINED) < 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_importance_of_real_numbers_on_a_gpu(dtype):
    assert error_of_importance("cuda", dtype) < (1e-4 if dtype is torch.float32 else 0.2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_importance_of_quantised_keys_on_a_gpu(dtype):
    assert error_of_importance("cuda", dtype, **TRAINED) < 0.2
