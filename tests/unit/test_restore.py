"""The budget of an interrupted request, laid out again, against a window kept from the start."""

import pytest
import torch

from raas_kernels import EvictionBuffers
from raas_sglang.restore import budget_layout, restore_layer

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


def test_bounds_cover_the_tokens_of_each_pages_present_life():
    generated, budget, heads, dim = 100, 64, 2, 8
    layout = budget_layout(generated, budget, PAGE)
    history = torch.randn(generated, heads, dim).bfloat16()
    shape = (3, heads, budget // PAGE)
    poison = [torch.full(shape, -7, dtype=torch.int32) for _ in range(2)]
    bounds = [torch.full((*shape, dim), float("nan"), dtype=torch.bfloat16) for _ in range(2)]
    buffers = EvictionBuffers(
        *poison, torch.ones(shape), torch.zeros(shape[:2], dtype=torch.int32), *bounds
    )
    restore_layer(buffers, 1, layout, history[layout.tokens], PAGE)
    for page, (birth, last) in enumerate(zip(layout.births, layout.lasts, strict=True)):
        own = history[birth : last + 1]
        assert buffers.key_min[1, :, page].equal(own.amin(0))
        assert buffers.key_max[1, :, page].equal(own.amax(0))
    assert buffers.stamps[1, 0].tolist() == layout.lasts.tolist()
    assert buffers.births[2].eq(-7).all(), "other requests stay as they were"
