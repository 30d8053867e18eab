"""The buffers that a wrapper of FlashInfer gets for its plans, and when it may write to them."""

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.attention.flashinfer_backend import FlashInferAttnBackend

from raas_sglang.attention.flashinfer import RaasFlashInferAttnBackend


class Wrapper:
    """Stands for FlashInfer's, which takes pinned memory as it comes."""

    def reset_workspace_buffer(self, float_workspace_buffer, int_workspace_buffer):
        self.given = float_workspace_buffer, int_workspace_buffer
        self._pin_memory_int_workspace_buffer = torch.full_like(int_workspace_buffer, 0xFF)


def test_a_plan_begins_without_what_the_memory_held_before():
    workspace, shared = torch.empty(4), torch.empty(64, dtype=torch.uint8)
    backend = SimpleNamespace(
        workspace_buffer=workspace,
        decode_wrappers=[SimpleNamespace(_int_workspace_buffer=shared)],
    )
    wrapper = RaasFlashInferAttnBackend._share_plan(backend, Wrapper())
    assert wrapper.given[0] is workspace
    assert wrapper.given[1] is shared
    assert not wrapper._pin_memory_int_workspace_buffer.any()


class Plans(RaasFlashInferAttnBackend):
    """A backend whose device and whose plans are a list of what happened."""

    pool = SimpleNamespace(state=SimpleNamespace(epoch=0, rows=lambda *_, **__: None))

    def __init__(self):
        self.happened = happened = []
        self._planned = None
        self.is_read = False
        self._plan_read = SimpleNamespace(
            query=lambda: self.is_read,
            synchronize=lambda: happened.append("wait"),
            record=lambda: happened.append("mark"),
        )
        self._graph_tables = torch.zeros(64, dtype=torch.int32)


def step(*seq_lens):
    mode = SimpleNamespace(is_decode=lambda: False, is_decode_or_idle=lambda: True)
    return SimpleNamespace(
        batch_size=len(seq_lens),
        forward_mode=mode,
        req_pool_indices=torch.arange(len(seq_lens)),
        seq_lens_cpu=torch.tensor(seq_lens),
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
