"""Faults put into the life of a request, one at a time: a test beside this one notices each.

A fault is what is put in, the test, and the invariant or words of its failure; the three without
words fail in what their test itself asserts.
"""

import pytest
from sglang.srt.managers.schedule_policy import PrefillAdder

from memory import test_admission as tests
from raas_patches import new_token_ratio_tracker, schedule_batch
from raas_sglang.life import admission, step
from raas_sglang.life.admission import ReservingPrefillAdder
from raas_sglang.life.request import RequestState
from raas_sglang.life.room import ceil_align
from raas_sglang.pool import RaasTokenToKVPool
from raas_sglang.state import EvictionState


def as_sglang(name):
    return ReservingPrefillAdder, name, getattr(PrefillAdder, name)


def resumed_in_place(server_args):
    tests.test_a_retraction_beyond_the_pool_keeps_the_last_tokens(server_args, chunk=0)


def long_answer(server_args):
    tests.test_a_request_generates_eight_times_the_pool(server_args, policy="raas")


def ends_with_a_step_in_flight(server_args):
    end = {"max_new": 900, "stop_at": 49}
    tests.test_the_tree_takes_all_until_a_step_has_overwritten(server_args, end, kept=30)


FAULTS = {
    "the tree takes what a request will overwrite": (
        (RequestState, "shareable_len", lambda self, end: end),
        resumed_in_place,
        "tree_purity",
    ),
    "the tree takes what a step in flight overwrites": (
        (RequestState, "finish", lambda self, end: end),
        ends_with_a_step_in_flight,
        "tree_purity",
    ),
    "it takes generated tokens from the tree": (
        (RequestState, "matchable_len", lambda self, longest: longest),
        tests.test_a_retracted_request_takes_no_generated_tokens_of_others,
        "tree_purity",
    ),
    "all of it is prefilled again": (
        (RequestState, "retract", lambda self, text_len: None),
        resumed_in_place,
        "Out of memory",
    ),
    "the oldest tokens are kept": (
        (RequestState, "kept", lambda self, text: text[: len(text) - self.skipped_len]),
        resumed_in_place,
        "fed_text",
    ),
    "its budget is not laid out again": (
        (RaasTokenToKVPool, "resume", lambda *_: None),
        tests.test_a_window_is_the_same_after_a_retraction,
        "window",
    ),
    "it grows on": (
        (step, "growing", lambda reqs, indices=None: [*range(len(reqs))]),
        long_answer,
        "budget_bound",
    ),
    "it saturates one token late": (
        (RequestState, "is_saturated", property(lambda self: self.logical_len > self.capacity)),
        long_answer,
        "budget_bound",
    ),
    "it is reserved for as if it were dense": (
        (admission, "is_bounded", lambda req: False),
        tests.test_a_running_request_keeps_its_reservation,
        "no_retraction",
    ),
    "what it may still take is not reserved": (
        (admission, "slots_to_grow", lambda *_: 0),
        tests.test_a_running_request_keeps_its_reservation,
        "no_retraction",
    ),
    "the rest of a prompt is not reserved for": (
        as_sglang("add_chunked_req"),
        tests.test_a_prompt_in_chunks_keeps_its_reservation,
        "no_retraction",
    ),
    "it is retracted when memory runs out": (
        (schedule_batch, "is_bounded", lambda req: False),
        tests.test_memory_runs_out_for_dense_neighbours_alone,
        "no_retraction",
    ),
    "it is guessed about": (
        (new_token_ratio_tracker, "is_bounded", lambda req: False),
        tests.test_only_dense_requests_are_guessed_about,
        None,
    ),
    "SGLang looks ahead for it": (
        as_sglang("add_one_req"),
        tests.test_who_is_retracted_comes_back_without_a_tree,
        "still running",
    ),
    "SGLang says who is preempted": (
        as_sglang("preempt_to_schedule"),
        tests.test_nothing_is_preempted_in_vain,
        None,
    ),
    "a prompt in the tree counts as given back": (
        (admission, "slots_held", lambda req, size: ceil_align(req.kv.kv_allocated_len, size)),
        tests.test_a_prompt_that_others_hold_is_not_given_back,
        None,
    ),
    "a plan outlives the slots that it names": (
        (EvictionState, "slots_changed", lambda self: None),
        tests.test_a_plan_does_not_outlive_the_slots_of_a_prompt,
        "stale_plan",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(server_args, monkeypatch, fault):
    change, noticed_by, words = FAULTS[fault]
    noticed_by(server_args)
    monkeypatch.setattr(*change)
    with pytest.raises((AssertionError, RuntimeError), match=words):
        noticed_by(server_args)
