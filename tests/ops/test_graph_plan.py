"""What FlashInfer is told of a step in a CUDA graph: SGLang's own updater over our lengths."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.attention import flashinfer_backend
from sglang.srt.mem_cache.kv_index_translator import KVIndexTranslator
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from raas_kernels import Policy
from raas_sglang.attention.flashinfer import RaasFlashInferAttnBackend
from raas_sglang.config import RaasConfig
from raas_sglang.life.options import RequestOptions
from raas_sglang.life.request import RequestState
from raas_sglang.pool import RaasTokenToKVPool
from raas_sglang.state import EvictionState, StateShape

ROWS, COLUMNS, BUDGET = 6, 64, 16
TABLE = torch.arange(ROWS * COLUMNS, dtype=torch.int32).view(ROWS, COLUMNS)


class Wrapper:
    """Stands for FlashInfer's, in graph mode; keeps the lengths that each plan is made of."""

    is_cuda_graph_enabled = True

    def __init__(self):
        self._paged_kv_indices_buf = torch.full((400,), -1, dtype=torch.int32)
        self.planned = []

    def begin_forward(self, kv_indptr, *_, global_override_indptr_cpu=None, **__):
        self.planned.append((kv_indptr.tolist(), global_override_indptr_cpu))


@pytest.fixture
def backend(monkeypatch):
    """Our backend on SGLang's updater and translator; the device is the CPU."""
    # SGLang imports it where there is a GPU.
    monkeypatch.setattr(
        flashinfer_backend, "fast_decode_plan", Wrapper.begin_forward, raising=False
    )
    state = EvictionState(
        RaasConfig(kv_policy="raas", kv_budget=BUDGET),
        StateShape(1, 1, 1, 8, torch.float32, torch.float32),
        ROWS,
        "cpu",
    )
    options = RequestOptions(Policy.RAAS, BUDGET, evicts=True)
    state.admit([2, 4], [RequestState(options, 3), RequestState(options, 5)])
    made = RaasFlashInferAttnBackend.__new__(RaasFlashInferAttnBackend)
    made.token_to_kv_pool = pool = RaasTokenToKVPool.__new__(RaasTokenToKVPool)
    pool.state = state
    made.kv_index_translator = KVIndexTranslator(
        req_to_token=TABLE,
        token_to_kv_pool_allocator=None,
        token_to_kv_pool=None,
        page_size=1,
        device="cpu",
    )
    made.dispatch_reason, made.num_wrappers, made.use_sliding_window_kv_pool = None, 1, False
    made.kv_indptr = [torch.zeros(9, dtype=torch.int32)]
    made.kv_last_page_len = torch.ones(8, dtype=torch.int32)
    made.wrapper, made.decode_cuda_graph_metadata = Wrapper(), {}
    made._create_decode_wrappers = lambda *_: [made.wrapper]
    made.indices_updater_decode = updater_of(made)
    made._planned, made._rows_without_split, made.decode_use_tensor_cores = None, 99, True
    made.enable_deterministic = False
    made._plan_read = SimpleNamespace(query=lambda: True, record=lambda: None)
    made._graph_tables = torch.zeros(5 * 8, dtype=torch.int32)
    return made


def updater_of(backend):
    updater = flashinfer_backend.FlashInferIndicesUpdaterDecode.__new__(
        flashinfer_backend.FlashInferIndicesUpdaterDecode
    )
    updater.attn_backend, updater._swa_kv_pool = backend, None
    updater.kv_indptr, updater.kv_last_page_len = backend.kv_indptr, backend.kv_last_page_len
    updater.num_qo_heads, updater.num_kv_heads, updater.head_dim = 4, 1, 8
    updater.data_type = updater.q_data_type = torch.bfloat16
    updater.update = updater.update_single_wrapper
    return updater


def batch(backend, rows, lens, **fields):
    lens = torch.tensor(lens)
    made = SimpleNamespace(
        batch_size=len(rows),
        forward_mode=ForwardMode.DECODE,
        req_pool_indices=torch.tensor(rows),
        positions=lens - 1,
        out_cache_loc=torch.zeros(len(rows), dtype=torch.int64),
        seq_lens=lens,
        seq_lens_cpu=lens.clone(),
        seq_lens_sum=int(lens.sum()),
        encoder_lens=None,
        spec_info=None,
        **fields,
    )
    made.kv_loc_plan = backend.kv_index_translator.own_plan(made)
    return made


def captured(backend):
    """A graph of four rows was captured; SGLang gives a replay FlashInfer's fast plan."""
    made_up = batch(backend, [0] * 4, [1] * 4, rids=None)
    backend.init_forward_metadata_out_graph(made_up, in_capture=True)
    wrapper = backend.wrapper
    assert wrapper.planned.pop()[0] == [0, 1, 2, 3, 4]
    assert isinstance(wrapper.begin_forward, partial), "as `call_begin_forward` looks for it"
    return wrapper


def begin(backend, logical, resident):
    lens = torch.tensor(logical), torch.tensor(resident)
    backend.pool.state.begin_step(torch.tensor([2, 4]), *lens)


def test_a_replay_reads_the_resident_slots_of_its_rows_and_of_the_padding(backend):
    wrapper = captured(backend)
    begin(backend, [30, 9], [19, 9])
    backend.init_forward_metadata_out_graph(batch(backend, [2, 4, 0, 0], [30, 9, 1, 1]))
    ((on_device, on_host),) = wrapper.planned
    assert on_device == on_host.tolist() == [0, 19, 28, 29, 30]
    read = wrapper._paged_kv_indices_buf.tolist()
    assert read[:30] == [*TABLE[2, :19].tolist(), *TABLE[4, :9].tolist(), 0, 0]
    assert read[30] == -1
    assert backend.rows.requests.prompt_lens.tolist() == [3, 5, 0, 0]


def test_a_plan_holds_while_only_the_text_grows(backend):
    wrapper = captured(backend)
    for logical, resident in (([30, 40], [19, 21]), ([31, 41], [19, 21])):
        begin(backend, logical, resident)
        backend.init_forward_metadata_out_graph(batch(backend, [2, 4, 0, 0], [*logical, 1, 1]))
    assert len(wrapper.planned) == 1
    backend.pool.state.slots_changed()
    backend.init_forward_metadata_out_graph(batch(backend, [2, 4, 0, 0], [31, 41, 1, 1]))
    assert len(wrapper.planned) == 2
