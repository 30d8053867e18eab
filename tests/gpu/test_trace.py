"""A trace sample leaves the device without a wait."""

import pytest
import torch

from raas_kernels import EvictionBuffers
from raas_sglang.trace import token_table
from raas_sglang.trace.sampler import TokenSampler
from token_tables import CONFIG, Kept, buffers, request

pytestmark = pytest.mark.gpu


def test_a_sample_is_of_its_step_and_nobody_waits_for_it():
    """The stream is busy before and overwritten after; any synchronisation would raise."""
    kept = Kept()
    state = EvictionBuffers(**{name: value.cuda() for name, value in buffers().tensors().items()})
    sampler = TokenSampler(state, CONFIG, kept, 0, 0)
    slots, expected = torch.tensor([4, 2], device="cuda"), []
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in (33, 34):
            torch.cuda._sleep(200_000_000)
            for tensor in (state.births, state.weights):
                tensor.fill_(step)
            sampler.sample(slots, [request("a", step), request("b", step)])
            expected.append(step)
        for tensor in (state.births, state.weights):
            tensor.fill_(-1)
        assert not torch.cuda.current_stream().query(), "the samples were not waited for"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for step in expected:
        _, batch = kept.arrive()
        for event in batch.events:
            for array in token_table(event):
                assert (array == step).all()
