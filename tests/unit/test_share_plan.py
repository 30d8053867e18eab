"""The buffers that a wrapper of FlashInfer gets for its plans, and when it may write to them."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.attention.flashinfer_backend import FlashInferAttnBackend

from raas_sglang.attention.flashinfer import RaasFlashInferAttnBackend


def test_all_plans_share_the_buffers_of_the_first_wrapper():
    workspace, shared = torch.empty(4), torch.empty(64, dtype=torch.uint8)
    backend = SimpleNamespace(
        workspace_buffer=workspace,
        decode_wrappers=[SimpleNamespace(_int_workspace_buffer=shared)],
    )
    given = []
    wrapper = SimpleNamespace(reset_workspace_buffer=lambda *buffers: given.extend(buffers))
    assert RaasFlashInferAttnBackend._share_plan(backend, wrapper) is wrapper
    assert given[0] is workspace
    assert given[1] is shared


LIMIT = 1000


class Plans(RaasFlashInferAttnBackend):
    """A backend whose device and whose plans are a list of what happened."""

    pool = SimpleNamespace(
        state=SimpleNamespace(
            epoch=0,
            rows=lambda *_, **__: None,
            step_lens=lambda lens: lens.clamp(max=LIMIT),
            resident_lens=lambda _, lens: lens.clamp(max=LIMIT),
        )
    )

    def __init__(self):
        self.happened = happened = []
        self._planned = None
        self.is_read = False
        self.enable_deterministic, self.decode_use_tensor_cores = False, True
        self._rows_without_split = 66
        self.kv_indptr, self.rows = [None], None
        self.decode_cuda_graph_metadata = defaultdict(lambda: [planned_wrapper()])
        self._plan_read = SimpleNamespace(
            query=lambda: self.is_read,
            synchronize=lambda: happened.append("wait"),
            record=lambda: happened.append("mark"),
        )
        self._graph_tables = torch.zeros(1024, dtype=torch.int32)
        self.decode_wrappers = [planned_wrapper()]

    def claim_slots(self):
        self.happened.append("claim")


def planned_wrapper():
    return SimpleNamespace(_paged_kv_indices_buf=None)


def step(*seq_lens, is_eager=False):
    mode = SimpleNamespace(is_decode=lambda: is_eager, is_decode_or_idle=lambda: True)
    return SimpleNamespace(
        batch_size=len(seq_lens),
        forward_mode=mode,
        req_pool_indices=torch.arange(len(seq_lens)),
        seq_lens=torch.tensor(seq_lens),
        seq_lens_cpu=torch.tensor(seq_lens),
        seq_lens_sum=sum(seq_lens),
        positions=None,
        out_cache_loc=None,
    )


@pytest.fixture
def backend(monkeypatch):
    for name in ("init_forward_metadata", "init_forward_metadata_out_graph"):
        monkeypatch.setattr(FlashInferAttnBackend, name, plan)
    return Plans()


def plan(backend, batch, in_capture=False):
    """Stands for SGLang's method: what FlashInfer is told of the lengths, and whether it splits."""
    backend.happened.append("plan")
    backend.told = batch.seq_lens.tolist(), batch.seq_lens_cpu.tolist(), batch.seq_lens_sum


def test_a_plan_waits_until_the_one_before_was_read(backend):
    backend.init_forward_metadata_out_graph(step(5, 7))
    backend.init_forward_metadata_out_graph(step(5, 7))  # holds still
    backend.init_forward_metadata(step(6, 8))
    backend.init_forward_metadata_out_graph(step(7, 9))
    assert backend.happened == ["wait", "plan", "mark"] * 3


def test_a_plan_that_was_read_is_not_waited_for(backend):
    backend.is_read = True
    backend.init_forward_metadata(step(6, 8))
    backend.init_forward_metadata_out_graph(step(7, 9))
    assert backend.happened == ["plan", "mark"] * 2


@pytest.mark.parametrize(
    ("deterministic", "tensor_cores", "rows", "unsplit"),
    [
        (False, True, 65, False),
        (False, True, 66, True),
        (True, True, 1, True),
        (False, False, 66, False),
    ],
)
def test_graphs_that_split_no_row_are_captured_and_replayed_alike(
    backend, deterministic, tensor_cores, rows, unsplit
):
    backend.enable_deterministic, backend.decode_use_tensor_cores = deterministic, tensor_cores
    backend.init_forward_metadata_out_graph(step(*range(1, rows + 1)), in_capture=True)
    assert backend.disable_cuda_graph_kv_split is unsplit
    backend.init_forward_metadata_out_graph(step(*range(2, rows + 2)))
    assert backend.disable_cuda_graph_kv_split is unsplit


@pytest.mark.parametrize("way", ["init_forward_metadata", "init_forward_metadata_out_graph"])
def test_a_plan_is_of_resident_lengths_and_the_batch_keeps_its_own(backend, way):
    batch = step(7, 1400, is_eager=True)
    getattr(backend, way)(batch)
    assert backend.told == ([7, 1000], [7, 1000], 1007)
    assert batch.seq_lens.tolist() == batch.seq_lens_cpu.tolist() == [7, 1400]
    assert batch.seq_lens_sum == 1407


def test_a_plan_holds_while_only_the_text_grows(backend):
    backend.init_forward_metadata_out_graph(step(1200, 1400))
    backend.init_forward_metadata_out_graph(step(1201, 1401))
    backend.init_forward_metadata_out_graph(step(7, 1402))
    assert backend.happened.count("plan") == 2


def test_a_made_up_batch_is_planned_as_it_is(backend):
    batch = step(1, 1)
    batch.rids, batch.seq_lens_cpu = None, torch.tensor([2000, 1])
    backend.init_forward_metadata_out_graph(batch, in_capture=True)
    assert backend.told[1] == [2000, 1]
