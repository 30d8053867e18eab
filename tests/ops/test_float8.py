"""A cache of float8 through our pool: what it holds is what SGLang's own pool would hold."""

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.attention.flashinfer_backend import FlashInferAttnBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc, MHATokenToKVPool, ReqToTokenPool

from raas_kernels import DecodeBatch, KVScales, Policy, torch_ops
from raas_sglang.attention.flashinfer import RaasFlashInferAttnBackend
from raas_sglang.config import RaasConfig
from raas_sglang.life.options import RequestOptions
from raas_sglang.life.request import RequestState
from raas_sglang.pool import RaasTokenToKVPool
from raas_sglang.state import StateShape

SLOTS, HEADS, GROUP, DIM, ROWS = 200, 2, 3, 64, 5
PROMPT, BUDGET = 7, 16
FLOAT8 = torch.float8_e4m3fn
# SGLang has none, numbers, or tensors of a checkpoint with their numbers beside them.
SCALES = (KVScales(), KVScales(0.37, 0.0213), KVScales(2.0, None))
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def memory(kind, device):
    return kind(SLOTS, 1, FLOAT8, HEADS, DIM, len(SCALES), device, False, enable_alt_stream=False)


def layer_of(index, device):
    """What SGLang and we look at of a layer, with its scales as a checkpoint's."""

    def parameter(scale):
        return None if scale is None else torch.tensor(scale, device=device)

    return SimpleNamespace(
        layer_id=index,
        tp_q_head_num=HEADS * GROUP,
        head_dim=DIM,
        scaling=DIM**-0.5,
        logit_cap=0.0,
        k_scale=parameter(SCALES[index].k_scale),
        v_scale=parameter(SCALES[index].v_scale),
        k_scale_float=SCALES[index].k_scale,
        v_scale_float=SCALES[index].v_scale,
    )


class Machine:
    """Our pool and a table of requests; the rows of a step are all of them."""

    def __init__(self, device):
        self.device, self.generator = device, torch.Generator().manual_seed(5)
        self.table = ReqToTokenPool(ROWS, 64, device, False)
        self.pool = memory(RaasTokenToKVPool, device)
        heads = (len(SCALES), HEADS, HEADS * GROUP, DIM)
        shape = StateShape(*heads, dtype=FLOAT8, query_dtype=torch.bfloat16)
        stream = torch.get_device_module(device).current_stream()
        self.pool.attach(RaasConfig("raas", BUDGET), self.table, shape, 0, stream, SCALES)
        if device == "cpu":
            self.pool.ops = torch_ops  # the interpreter rounds to float8 in its own way

    def random(self, *shape):
        """Numbers of all sizes, also too large and too small ones."""
        spread = torch.randn(shape, generator=self.generator).mul(3).exp()
        signed = spread * torch.randn(shape, generator=self.generator)
        return signed.bfloat16().to(self.device)

    def store(self, requests, positions, locations):
        """One decode step of all layers; returns what was stored."""
        table = self.table.req_to_token
        rows = DecodeBatch(
            req_pool_indices=requests,
            positions=positions,
            out_cache_loc=locations,
            kv_indptr=requests * table.shape[1],
            kv_indices=table.view(-1),
            requests=self.pool.state.rows(requests),
        )
        self.pool.claim_slots(rows)
        given = []
        for index in range(len(SCALES)):
            k, v = (self.random(len(requests), HEADS, DIM) for _ in "kv")
            q = self.random(len(requests), HEADS * GROUP, DIM)
            self.pool.store_decode(layer_of(index, self.device), q, k, v, rows)
            given.append((k, v))
        return given

    def values(self, index, slots):
        """Norms [n, H] of what attention reads, but for the scale of the layer."""
        return self.pool.get_value_buffer(index)[slots].float().norm(dim=2)


def same_bytes(ours, theirs):
    return torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))


@pytest.mark.parametrize("device", DEVICES)
def test_a_decode_step_stores_what_sglang_would_store(device):
    machine, plain = Machine(device), memory(MHATokenToKVPool, device)
    requests = torch.arange(1, ROWS + 1, device=device)
    for step in range(4):
        locations = 1 + torch.arange(ROWS, device=device) + step * ROWS
        positions = torch.full_like(requests, PROMPT + step)
        for index, (k, v) in enumerate(machine.store(requests, positions, locations)):
            layer = layer_of(index, device)
            plain.set_kv_buffer(
                layer, KVWriteLoc(locations, None), k, v, layer.k_scale, layer.v_scale
            )
    for index in range(len(SCALES)):
        for ours, theirs in zip(
            machine.pool.get_kv_buffer(index), plain.get_kv_buffer(index), strict=True
        ):
            assert ours.dtype == FLOAT8
            assert ours.float().unique().numel() > 200, "nearly all numbers that there are"
            assert same_bytes(ours[1:], theirs[1:])


@pytest.mark.parametrize("device", DEVICES)
def test_norms_are_those_of_the_values_that_attention_reads(device):
    """Of a decoded token, and of one that was prefilled again."""
    machine = Machine(device)
    state = RequestState(RequestOptions(Policy.RAAS, BUDGET, evicts=True), PROMPT)
    machine.pool.state.admit([3], [state])
    slots = torch.arange(20, 20 + PROMPT + BUDGET, dtype=torch.int32, device=device)
    machine.table.req_to_token[3, : len(slots)] = slots
    requests = torch.tensor([3], device=device)
    budget = slots[PROMPT:].long()
    for step in range(BUDGET):
        machine.store(requests, requests * 0 + PROMPT + step, budget[step : step + 1])
    norms = machine.pool.state.buffers.value_norms
    for index in range(len(SCALES)):
        torch.testing.assert_close(norms[index, 3].T, machine.values(index, budget))
    decoded = norms[:, 3].clone()
    norms.fill_(-1)
    state.logical_len = PROMPT + BUDGET
    machine.pool.resume(3, state)
    torch.testing.assert_close(norms[:, 3], decoded)


def test_attention_is_told_of_a_layer_what_sglang_tells_it():
    told = []

    def forward(q, cache, **options):
        told.append(([(part.dtype, part.data_ptr()) for part in cache], options))
        return q

    backend = RaasFlashInferAttnBackend.__new__(RaasFlashInferAttnBackend)
    backend.token_to_kv_pool = Machine("cpu").pool
    backend.num_wrappers, backend.decode_uses_dequant_workspace = 1, False
    wrapper = SimpleNamespace(forward=forward)
    backend.forward_metadata = SimpleNamespace(decode_wrappers=[wrapper])
    q = torch.zeros(ROWS, HEADS * GROUP * DIM)
    for index, scales in enumerate(SCALES):
        layer = layer_of(index, "cpu")
        backend._attend(q, layer, None)
        plain = FlashInferAttnBackend.forward_decode
        plain(backend, q, None, None, layer, None, save_kv_cache=False)
        ours, theirs = told[-2:]
        assert ours == theirs
        assert [dtype for dtype, _ in ours[0]] == [FLOAT8, FLOAT8]
        assert (ours[1]["k_scale"], ours[1]["v_scale"]) == scales
