"""The budget of an interrupted request, laid out again, against a window kept from the start."""

import pytest
import torch

from raas_kernels import EvictionBuffers
from raas_sglang.restore import budget_layout, restore_state

PAGE = 16


@pytest.mark.parametrize("budget", [16, 64])
@pytest.mark.parametrize("generated", [1, 15, 16, 17, 63, 64, 65, 100, 128, 1000])
def test_layout_is_what_the_window_policy_would_have_left(generated, budget):
    places, births = {}, {}
    for token in range(generated):
        place = token % budget
        if place % PAGE == 0:
            births[place // PAGE] = token
        places[place] = token
    layout = budget_layout(generated, budget, PAGE)
    assert layout.tokens.tolist() == [places[place] for place in range(len(places))]
    assert layout.births.tolist() == [births[page] for page in range(len(births))]
    assert layout.current == (generated - 1) % budget // PAGE
    newest = [max(t for p, t in places.items() if p // PAGE == page) for page in births]
    assert layout.lasts.tolist() == newest


def test_pages_of_a_request_are_stamped_by_their_last_tokens_and_others_stay():
    generated, budget, layers, heads = 100, 64, 2, 3
    layout = budget_layout(generated, budget, PAGE)
    shape = (layers, 3, heads, budget // PAGE)
    buffers = EvictionBuffers(
        *(torch.full(shape, -7, dtype=torch.int32) for _ in range(2)),
        torch.ones(shape),
        torch.full(shape[:3], -7, dtype=torch.int32),
        torch.zeros(layers, 3, 0, heads, 8),
    )
    restore_state(buffers, 1, layout)
    for layer in range(layers):
        for head in range(heads):
            at = (layer, 1, head)
            assert buffers.stamps[at].tolist() == layout.lasts.tolist()
            assert buffers.births[at].tolist() == layout.births.tolist()
            assert not buffers.mass[at].any()
            assert buffers.current[at] == layout.current
    for slot in (0, 2):
        assert buffers.births[:, slot].eq(-7).all()
        assert buffers.stamps[:, slot].eq(-7).all()
        assert buffers.current[:, slot].eq(-7).all()
        assert buffers.mass[:, slot].eq(1).all()
