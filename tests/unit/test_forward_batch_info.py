"""Positions of a request that goes on: where its tokens stand in the text."""

from types import SimpleNamespace

import torch

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


def test_requests_that_were_not_retracted_are_left_alone():
    assert positions_after([request(3, 0)], [2], [4, 5]).positions.tolist() == [4, 5]
