"""Exact page scores, and the attention that they come from, against plain torch in float32."""

import functools
import os

import pytest
import torch

from raas_kernels import DecodeBatch, EvictionBuffers, Policy, RequestTables
from raas_kernels.exact_scores import AttentionLogits, score_logits
from raas_kernels.layout import StepBuffers, StepOptions

PAGE = 16
OPTIONS = StepOptions(PAGE, 0, False, None)

# (policy, prompt length, step, budget); a padded row of a CUDA graph is dense and one token long.
GROWING = [(Policy.RAAS, 5, 0, 64), (Policy.H2O, 1, 15, 64), (Policy.RAAS, 40, 16, 32)]
SATURATED = [(Policy.RAAS, 9, 64, 64), (Policy.H2O, 33, 200, 64), (Policy.RAAS, 3, 47, 32)]
DENSE = [(Policy.DENSE, 7, 90, 64)]
PADDED = [(Policy.DENSE, 0, 0, 0)] * 2
LONG = [(Policy.RAAS, 300, 5000, 1024), (Policy.RAAS, 77, 901, 1024), (Policy.RAAS, 1, 130, 512)]
ROWS = {
    "growing": GROWING,
    "saturated": SATURATED,
    "mixed and padded": [*GROWING, *DENSE, *SATURATED, *PADDED],
    "one token": [(Policy.RAAS, 0, 0, 16)],
    "one page, overwritten": [(Policy.RAAS, 4, 21, 16)],
    "only padded": PADDED,
}


class Step:
    """One decode step of one layer over random keys."""

    def __init__(self, device, rows, *, group, heads=2, dim=64, dtype=torch.float32, pages=0):
        self.generator = torch.Generator().manual_seed(7)
        self.device, self.dtype = device, dtype
        self.heads, self.group, self.dim = heads, group, dim
        self.scaling = dim**-0.5
        self.pages = pages or max(1, max(row[3] for row in rows) // PAGE)
        policies, prompts, steps, budgets = (list(column) for column in zip(*rows, strict=True))
        held = [
            step + 1 if policy == Policy.DENSE else min(step + 1, budget)
            for policy, _, step, budget in rows
        ]
        self.lens = [prompt + count for prompt, count in zip(prompts, held, strict=True)]
        self.rows = rows
        total = sum(self.lens) + 1
        self.indptr = self.integers([0, *torch.tensor(self.lens).cumsum(0).tolist()])
        indices = torch.randperm(total - 1, generator=self.generator) + 1
        self.indices = indices.int().to(device)
        count = len(rows)
        # A view, as the model hands it over: key and value heads stand between two rows' queries.
        self.q = (self.normal(count, heads * (group + 2), dim) * 2)[:, : heads * group]
        self.keys, self.values = self.normal(total, heads, dim), self.normal(total, heads, dim)
        # Slot 0 is padding; rows live in slots of any order.
        order = torch.randperm(count, generator=self.generator) + 1
        slots = [0 if row in PADDED else int(slot) for row, slot in zip(rows, order, strict=True)]
        tables = (policies, prompts, budgets, [1] * count, [0] * count)
        self.batch = DecodeBatch(
            torch.tensor(slots, device=device),
            torch.tensor([p + s for p, s in zip(prompts, steps, strict=True)], device=device),
            torch.zeros(count, dtype=torch.int64, device=device),
            self.indptr,
            self.indices,
            RequestTables(*(self.integers(column) for column in tables)),
        )
        current = torch.zeros(count + 1, heads, dtype=torch.int32)
        for slot, (_, _, step, budget) in zip(slots, rows, strict=True):
            places = max(1, budget // PAGE)
            any_page = torch.randint(places, (heads,), generator=self.generator)
            current[slot] = any_page.int() if step >= budget else step // PAGE
        empty = torch.empty(0, device=device)
        self.buffers = EvictionBuffers(empty, empty, empty, current.to(device), empty)

    def normal(self, *shape):
        return torch.randn(shape, generator=self.generator).to(self.dtype).to(self.device)

    def integers(self, values):
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def slots(self, row):
        return self.indices[int(self.indptr[row]) : int(self.indptr[row + 1])].long()

    def qk(self, row):
        """[H, G, tokens] float32 logits of a row."""
        query = self.q[row].float().view(self.heads, self.group, self.dim)
        return query @ self.keys[self.slots(row)].float().permute(1, 2, 0)

    def empty_outputs(self):
        """Buffers poisoned with NaN: what nobody writes shows."""
        count, nan = len(self.rows), float("nan")
        heads = self.heads * self.group
        logits = AttentionLogits.empty(count + 1, heads, self.pages * PAGE, self.device)
        scores = torch.full((count + 1, self.heads, self.pages), nan, device=self.device)
        unused = [torch.empty(0, device=self.device)] * 2
        step = StepBuffers(*unused, scores.clone(), scores)
        return AttentionLogits(*(tensor.fill_(nan) for tensor in logits)), step

    def attention_in_torch(self, logits):
        """What the attention kernel leaves behind, by plain torch."""
        for row, (_, prompt, _, _) in enumerate(self.rows):
            qk = self.qk(row).flatten(0, 1)
            kept = qk[:, prompt : prompt + self.pages * PAGE]
            logits.logits[row, :, : kept.shape[1]] = kept
            logits.lse[row] = (qk * self.scaling).logsumexp(-1) / torch.tensor(2.0).log()

    def check_scores(self, step, **tolerance):
        """Compares page by page with a softmax over the whole row."""
        slots = self.batch.req_pool_indices.tolist()
        for row, (policy, prompt, now, budget) in enumerate(self.rows):
            if policy == Policy.DENSE:
                assert step.page_scores[row].isnan().all()
                assert step.page_mass[row].isnan().all()
                continue
            weights = (self.qk(row) * self.scaling).softmax(-1)[..., prompt:].cpu()
            held = min(now + 1, budget)
            padded = torch.zeros(self.heads, self.group, self.pages, PAGE)
            padded.flatten(2)[..., :held] = weights
            for head, page in enumerate(self.buffers.current[slots[row]].tolist()):
                padded[head, :, page, now % PAGE + 1 :] = 0
            largest, mass = padded.amax(3).amax(1), padded.sum(3).mean(1)
            for got, want in ((step.page_scores, largest), (step.page_mass, mass)):
                torch.testing.assert_close(got[row].cpu(), want, **tolerance)
        assert step.page_scores[len(self.rows) :].isnan().all()

    def outputs_in_torch(self, dtype):
        """[B, Hq, D] attention with every operation in ``dtype``."""
        outputs = []
        for row in range(len(self.rows)):
            query = self.q[row].to(dtype).view(self.heads, self.group, self.dim)
            keys, values = (t[self.slots(row)].to(dtype) for t in (self.keys, self.values))
            weights = (query @ keys.permute(1, 2, 0) * self.scaling).softmax(-1)
            outputs.append((weights @ values.transpose(0, 1)).flatten(0, 1))
        return torch.stack(outputs)


def check_kernel(device, rows, **shape):
    step = Step(device, rows, **shape)
    logits, outputs = step.empty_outputs()
    step.attention_in_torch(logits)
    score_logits(logits, step.scaling, step.batch, step.buffers, outputs, OPTIONS)
    step.check_scores(outputs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("group", [1, 7])
def test_interpreted_kernel(rows, group):
    assert os.environ.get("TRITON_INTERPRET") == "1", (
        "run with TRITON_INTERPRET=1, as make test does"
    )
    check_kernel("cpu", ROWS[rows], group=group)


@pytest.mark.parametrize("pages", [5, 17, 33])
def test_interpreted_kernel_for_a_larger_budget_than_the_rows_have(pages):
    check_kernel("cpu", [*GROWING, *SATURATED], group=2, pages=pages)


def test_empty_batch():
    step = Step("cpu", GROWING, group=1)
    logits, outputs = step.empty_outputs()
    batch = step.batch._replace(positions=step.batch.positions[:0])
    score_logits(logits, step.scaling, batch, step.buffers, outputs, OPTIONS)
    assert outputs.page_scores.isnan().all()


def test_buffers_of_another_budget_are_refused():
    step = Step("cpu", GROWING, group=1)
    logits, outputs = step.empty_outputs()
    short = logits._replace(logits=logits.logits[..., :-1])
    with pytest.raises(
        ValueError, match=r"must hold the tokens of 4 pages of 16, .* got 63 tokens"
    ):
        score_logits(short, step.scaling, step.batch, step.buffers, outputs, OPTIONS)


def test_missing_compiler_is_named(monkeypatch):
    from raas_sglang.attention import logits

    def fail(*args):
        raise RuntimeError("Could not find nvcc")

    monkeypatch.setattr(logits, "gen_customize_batch_prefill_module", fail)
    wanted = "--kv-score exact must compile .* got 'Could not find nvcc' .* or use --kv-score bound"
    with pytest.raises(RuntimeError, match=wanted):
        logits.compile_logits_module.__wrapped__(torch.float16, 256, True)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [*ROWS, "long"])
@pytest.mark.parametrize("group", [1, 4, 7, 8])
def test_compiled_kernel(rows, group):
    check_kernel("cuda", {**ROWS, "long": LONG}[rows], group=group)


@functools.cache
def workspace():
    return torch.empty(128 << 20, dtype=torch.uint8, device="cuda")


def decode_wrapper(step, **graph):
    from raas_sglang.attention.logits import LogitsDecodeWrapper, compile_logits_module

    module = compile_logits_module(step.dtype, step.dim, step.group >= 4)
    return LogitsDecodeWrapper(workspace(), module, **graph)


def plan(wrapper, step, **kwargs):
    wrapper.begin_forward(
        step.indptr,
        step.indices,
        torch.ones(len(step.rows), dtype=torch.int32, device="cuda"),
        *(step.heads * step.group, step.heads, step.dim, 1),
        data_type=step.dtype,
        q_data_type=step.dtype,
        **kwargs,
    )


def decode(wrapper, step, logits, outputs):
    cache = (step.keys.unsqueeze(1), step.values.unsqueeze(1))
    out = wrapper.run_with_logits(step.q, cache, step.scaling, step.batch.requests, logits)
    score_logits(logits, step.scaling, step.batch, step.buffers, outputs, OPTIONS)
    return out


def check_decode(step, out, outputs):
    step.check_scores(outputs, rtol=2e-3, atol=1e-6)
    exact = step.outputs_in_torch(torch.float32)
    yardstick = (step.outputs_in_torch(step.dtype).float() - exact).abs().max()
    error = (out.float() - exact).abs().max()
    assert error <= 2 * yardstick + 1e-6, (
        f"error {error:.2e}, of plain {step.dtype} {yardstick:.2e}"
    )


@pytest.mark.gpu
@pytest.mark.parametrize("rows", ["mixed and padded", "long", "many", "one token"])
@pytest.mark.parametrize("group", [1, 2, 4, 7, 8])
@pytest.mark.parametrize("dim", [64, 128])
def test_decode_leaves_exact_scores(dim, group, rows):
    chosen = {**ROWS, "long": LONG, "many": [*SATURATED, *LONG, *GROWING] * 8}[rows]
    dtype = torch.float16 if dim == 64 else torch.bfloat16
    step = Step("cuda", chosen, group=group, dim=dim, dtype=dtype)
    logits, outputs = step.empty_outputs()
    wrapper = decode_wrapper(step)
    plan(wrapper, step)
    check_decode(step, decode(wrapper, step, logits, outputs), outputs)


@pytest.mark.gpu
@pytest.mark.parametrize("group", [2, 7])
def test_replayed_graph_follows_a_new_plan(group):
    from flashinfer.decode import fast_decode_plan

    shape = {"group": group, "dim": 128, "dtype": torch.bfloat16, "pages": 64}
    # Short rows are captured and long ones replayed: their split into chunks is another.
    captured = Step("cuda", [*PADDED, *PADDED, *DENSE, *GROWING], **shape)
    later = Step("cuda", [*LONG, *GROWING, *SATURATED[:2]], **shape)
    total = len(later.indices)
    static = {"q": captured.q.clone(), "keys": torch.zeros_like(later.keys)}
    static["values"] = torch.zeros_like(later.values)
    assert len(captured.rows) == len(later.rows)
    wrapper = decode_wrapper(
        captured,
        use_cuda_graph=True,
        paged_kv_indptr_buffer=captured.indptr.clone(),
        paged_kv_indices_buffer=torch.zeros(total + 4096, dtype=torch.int32, device="cuda"),
        paged_kv_last_page_len_buffer=torch.ones(
            len(captured.rows), dtype=torch.int32, device="cuda"
        ),
    )
    logits, outputs = captured.empty_outputs()
    captured.q, captured.keys, captured.values = static["q"], static["keys"], static["values"]
    plan(wrapper, captured)
    for _ in range(2):
        decode(wrapper, captured, logits, outputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = decode(wrapper, captured, logits, outputs)
    for target, source in (
        *((static[name], getattr(later, name)) for name in static),
        *zip(captured.batch.requests, later.batch.requests, strict=True),
        (captured.batch.positions, later.batch.positions),
        (captured.batch.req_pool_indices, later.batch.req_pool_indices),
        (captured.buffers.current, later.buffers.current),
        (wrapper._paged_kv_indptr_buf, later.indptr),
        (wrapper._paged_kv_indices_buf[:total], later.indices),
    ):
        target.copy_(source)
    for poisoned in (*logits, outputs.page_scores, outputs.page_mass):
        poisoned.fill_(float("nan"))
    wrapper.begin_forward = functools.partial(fast_decode_plan, wrapper)
    plan(wrapper, later, global_override_indptr_cpu=later.indptr.cpu())
    graph.replay()
    check_decode(later, out, outputs)
