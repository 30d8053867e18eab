"""The buffers that a wrapper of FlashInfer gets for its plans, and when it may write to them."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.attention.flashinfer_backend import FlashInferAttnBackend

from raas_sglang.attention.flashinfer import RaasFlashInferAttnBackend
from raas_sglang.attention.unsplit import drop_spare_blocks


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


def test_no_spare_block_is_left_of_a_plan():
    wrapper = SimpleNamespace(_plan_info=[919, 640, 3, 16])
    drop_spare_blocks(wrapper, 640)
    assert wrapper._plan_info == [640, 640, 3, 16]


class Plans(RaasFlashInferAttnBackend):
    """A backend whose device and whose plans are a list of what happened."""

    pool = SimpleNamespace(state=SimpleNamespace(epoch=0, rows=lambda *_, **__: None))

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


def planned_wrapper():
    return SimpleNamespace(_plan_info=[99, 0], _paged_kv_indices_buf=None)


def step(*seq_lens):
    mode = SimpleNamespace(is_decode=lambda: False, is_decode_or_idle=lambda: True)
    return SimpleNamespace(
        batch_size=len(seq_lens),
        forward_mode=mode,
        req_pool_indices=torch.arange(len(seq_lens)),
        seq_lens_cpu=torch.tensor(seq_lens),
        positions=None,
        out_cache_loc=None,
    )


@pytest.fixture
def backend(monkeypatch):
    for name in ("init_forward_metadata", "init_forward_metadata_out_graph"):
        monkeypatch.setattr(
            FlashInferAttnBackend, name, lambda self, *_, **__: self.happened.append("plan")
        )
    return Plans()


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
    (wrapper,) = backend.decode_cuda_graph_metadata[rows]
    assert wrapper._plan_info[0] == (rows if unsplit else 99)
    backend.init_forward_metadata_out_graph(step(*range(2, rows + 2)))
    assert backend.disable_cuda_graph_kv_split is unsplit
