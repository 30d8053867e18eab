"""Positions of a request that goes on: where its tokens stand in the text."""

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.model_executor import forward_batch_info
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode

from raas_kernels import Policy
from raas_patches.forward_batch_info import init_new
from raas_patches.model_runner import sample
from raas_sglang.life.options import RequestOptions
from raas_sglang.life.request import RequestState


def request(prompt_len, skipped):
    state = RequestState(RequestOptions(Policy.RAAS, 16, evicts=True), prompt_len)
    state.retract(prompt_len + skipped + 16 if skipped else prompt_len)
    return SimpleNamespace(raas=state)


def made_by_sglang(mode, **fields):
    """Stands for `ForwardBatch.init_new`: returns what it would have made."""
    modes = {"is_extend": lambda: mode == "extend"}
    batch = SimpleNamespace(forward_mode=SimpleNamespace(**modes), mrope_positions=None, **fields)
    return lambda *_: batch


def positions_after(requests, extend_lens, positions, **fields):
    lens = torch.tensor([r.raas.prompt_len for r in requests])
    original = made_by_sglang("extend", positions=torch.tensor(positions), seq_lens=lens)
    for name, value in fields.items():
        setattr(original(), name, value)
    batch = SimpleNamespace(reqs=requests, extend_lens=extend_lens)
    return init_new(original, object, batch, None)


def test_tokens_after_the_prompt_stand_where_they_stood():
    requests = [request(3, 0), request(3, 10), request(2, 5)]
    # The second is whole, of the third the prompt is in the tree and the first chunk two tokens.
    got = positions_after(requests, [3, 7, 2], [0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 2, 3])
    assert got.positions.tolist() == [0, 1, 2, 0, 1, 2, 13, 14, 15, 16, 7, 8]


def test_the_next_token_is_sampled_where_it_stands_in_the_text():
    """`sampling_seed` is mixed with the position, which SGLang takes from the lengths."""
    batch = positions_after([request(3, 0), request(3, 10)], [3, 7], [*range(3), *range(7)])
    resident = batch.seq_lens = torch.tensor([3, 7])
    seen = sample(lambda _, __, batch: batch.seq_lens - 1, None, None, batch)
    assert seen.tolist() == [2, 16]
    assert batch.seq_lens is resident
    untouched = SimpleNamespace(seq_lens=resident)
    assert sample(lambda _, __, batch: batch.seq_lens, None, None, untouched) is resident


def test_multimodal_positions_move_alike():
    mrope = torch.tensor([[0, 1, 2], [0, 1, 2], [0, 1, 2]])
    got = positions_after([request(1, 6)], [3], [0, 1, 2], mrope_positions=mrope)
    assert got.mrope_positions.tolist() == [[0, 7, 8]] * 3


@pytest.mark.parametrize("cached", [0, 7, 20])
def test_text_behind_an_image_stands_where_it_stood(cached, monkeypatch):
    """SGLang gives such a request the positions of its prompt alone, or a single one."""
    prompt_len, resident, generated, delta = 20, 16, 60, -9
    monkeypatch.setattr(
        forward_batch_info,
        "get_exec",
        lambda: SimpleNamespace(deterministic=SimpleNamespace(rl_on_policy_target=None)),
    )
    image = SimpleNamespace(
        mrope_positions=torch.arange(prompt_len).repeat(3, 1) // 2,
        mrope_position_delta=torch.tensor([[delta]]),
        mrope_position_delta_repeated_cache=None,
    )
    requests = [request(prompt_len, generated - resident), request(3, 0)]
    for req in requests:
        req.session = None
    counts = [prompt_len + resident - cached, 3]
    batch = SimpleNamespace(
        reqs=requests, multimodal_inputs=[image, None], prefix_lens=[cached, 0], extend_lens=counts
    )
    made = ForwardBatch.__new__(ForwardBatch)
    made.forward_mode = ForwardMode.EXTEND
    made.seq_lens = made.seq_lens_cpu = torch.tensor([prompt_len + resident, 3])
    made.positions = torch.cat([torch.arange(cached, prompt_len + resident), torch.arange(3)])
    made._compute_mrope_positions_extend(SimpleNamespace(device="cpu"), batch)
    got = init_new(lambda *_: made, object, batch, None).mrope_positions
    skipped = prompt_len + generated - resident
    want = [p // 2 for p in range(cached, prompt_len)]
    want += [p + delta for p in range(skipped, skipped + resident)]
    assert got.tolist() == [[*want, 0, 1, 2]] * 3


def test_requests_that_were_not_retracted_are_left_alone():
    assert positions_after([request(3, 0)], [2], [4, 5]).positions.tolist() == [4, 5]
