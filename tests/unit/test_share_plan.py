"""The buffers that a wrapper of FlashInfer gets for its plans."""

from types import SimpleNamespace

import torch

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
