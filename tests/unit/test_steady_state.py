"""The put-together steady state is what a long run would come to, and is measured as it was."""

from itertools import pairwise

import pytest

from benchmarks.harness.prompts import Prompts
from benchmarks.harness.queue import Request, Served
from benchmarks.serving.online import goodput
from benchmarks.serving.steady_state import Work, requests
from reasoner import REASONER

DENSE = Work(prompt=256, output=32768, budget=None)
BOUNDED = Work(prompt=256, output=32768, budget=1024)


def test_staggered_dense_requests_fill_the_pool_and_no_more():
    count = DENSE.fitting(pool=900_000, most=704, steps=0)
    assert count == 54
    held = sum(prompt for prompt, _ in DENSE.staggered(count))
    assert 900_000 - DENSE.mean_slots < held <= 900_000


@pytest.mark.parametrize("work", [DENSE, Work(256, 8192, None), Work(256, 2048, None)])
def test_a_dense_queue_that_fits_never_has_to_give_way(work):
    pool, settle, steps = 900_000, 620, 1720
    count = work.fitting(pool, 704, steps)
    lengths = [prompt for prompt, _ in work.staggered(count - 1)] + [work.prompt + settle]
    ends = [work.prompt + work.output] * (count - 1) + [work.prompt + settle + work.output]
    most = 0
    for _ in range(steps - settle):
        lengths = [
            length + 1 if length < end else work.prompt
            for length, end in zip(lengths, ends, strict=True)
        ]
        most = max(most, sum(lengths))
    assert pool - 1.1 * work.mean_slots < most <= pool


def test_depth_is_prompt_where_it_is_held_and_every_request_ends_on_time():
    for prompt, output in DENSE.staggered(54):
        assert prompt - DENSE.prompt + output == DENSE.output
    assert {prompt for prompt, _ in BOUNDED.staggered(64)} == {256}
    outputs = [output for _, output in BOUNDED.staggered(64)]
    assert outputs == sorted(outputs)
    gaps = {later - earlier for earlier, later in pairwise(outputs)}
    assert gaps == {32768 // 64}


def test_a_bounded_request_counts_by_what_is_reserved_for_it():
    assert BOUNDED.fitting(pool=900_000, most=10_000, steps=1720) == 900_000 // 1280
    assert BOUNDED.fitting(pool=900_000, most=512, steps=1720) == 512
    assert Work(256, 512, 1024).fitting(pool=7680, most=512, steps=1720) == 10
    assert (DENSE.steps_to_saturation, BOUNDED.steps_to_saturation) == (0, 1024)


def test_requests_are_the_pilot_then_the_staggered_then_new_ones():
    work = Work(prompt=8, output=100, budget=None)
    source = requests(work, Prompts(REASONER, seed=1), pilot=7, count=2)
    seen = [next(source) for _ in range(5)]
    sizes = [(len(request.input_ids), request.max_new_tokens) for request in seen]
    assert sizes == [(8, 107), (83, 25), (33, 75), (8, 100), (8, 100)]
    assert len({tuple(request.input_ids[:8]) for request in seen}) == 5


def test_prompts_are_prefixes_of_one_text_each():
    prompts, again = Prompts(REASONER, seed=1), Prompts(REASONER, seed=1)
    assert prompts.text(3, 20) == again.text(3, 30)[:20]
    assert prompts.text(3, 20) != Prompts(REASONER, seed=2).text(3, 20)


def test_tokens_between_two_messages_come_evenly():
    served = Served(Request([1], 10))
    assert served.generated(5.0) == 0
    served.seconds, served.tokens = [10.0, 12.0], [1, 9]
    assert [served.generated(when) for when in (9.9, 10.0, 11.0, 12.0, 99.0)] == [0, 1, 5, 9, 9]


@pytest.mark.parametrize(
    ("first", "between", "expected"),
    [([0.1, 0.1], [0.01, 0.01], 0.2), ([0.6, 0.1], [0.01, 0.01], 0.1), ([0.1], [0.03], 0.0)],
)
def test_goodput_counts_requests_that_keep_to_both_targets(first, between, expected):
    assert goodput(first, between, 0.5, 0.02, 10.0) == expected
