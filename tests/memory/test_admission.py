"""Admission, reservation and retraction where they are easiest to get wrong, in the simulation."""

from types import SimpleNamespace

import pytest
from sglang.srt.managers.scheduler_components.new_token_ratio_tracker import NewTokenRatioTracker

from client import EVICTING
from memory_hooks import PAGE_SIZE
from scheduler_sim import Settings, Simulation

SMALL = {"page_size": PAGE_SIZE, "slots": 112, "requests": 4, "reserve": 8}


def run(simulation, steps=2000, until=None, **arguments):
    """Steps until every request has ended, or until something holds; all invariants are checked."""
    for _ in range(steps):
        if until() if until else not simulation.requests:
            return
        simulation.apply("step", **arguments)
    raise AssertionError(f"still running: {sorted(simulation.requests)}")


def generated(simulation, number):
    return len(simulation.requests[number].output_ids)


def forever(number, policy, budget, max_new, **prompt):
    return {"number": number, "policy": policy, "budget": budget, "max_new": max_new,
            "stop_at": 9999, **prompt}  # fmt: skip


@pytest.mark.parametrize("policy", EVICTING)
def test_a_request_generates_eight_times_the_pool(server_args, policy):
    simulation = Simulation(Settings(**SMALL), server_args)
    simulation.apply("arrive", **forever(1, policy, 48, 900, private=30))
    run(simulation)
    assert simulation.counts["beyond"] == 1
    assert simulation.model.overwrites > 800


@pytest.mark.parametrize("chunk", [0, 16, 32])
def test_a_retraction_beyond_the_pool_keeps_the_last_tokens(server_args, chunk):
    """The model knows which tokens are kept, where they stand in the text and what they hold."""
    simulation = Simulation(Settings(**SMALL), server_args)
    simulation.apply("arrive", **forever(1, "raas", 48, 400, private=30))
    for tokens in (20, 200, 300):
        run(simulation, until=lambda tokens=tokens: generated(simulation, 1) >= tokens)
        simulation.apply("pause")
        run(simulation, until=lambda: simulation.requests[1].decode_batch_idx > 0, chunk=chunk)
    run(simulation)
    assert simulation.model.resumptions == 3
    assert simulation.counts["beyond"] == 1


def test_a_window_is_the_same_after_a_retraction(server_args):
    simulation = Simulation(Settings(**SMALL), server_args)
    simulation.apply("arrive", **forever(1, "window", 48, 200, private=30))
    run(simulation, until=lambda: generated(simulation, 1) >= 100)
    simulation.apply("pause")
    run(simulation)


def test_a_retracted_request_takes_no_generated_tokens_of_others(server_args):
    """The answer to the same prompt is in the tree, and the next overwrite would change it."""
    simulation = Simulation(Settings(**{**SMALL, "slots": 208}), server_args)
    simulation.apply("arrive", **forever(1, "dense", 16, 60, private=30))
    run(simulation)
    simulation.apply("arrive", **forever(2, "raas", 48, 200, private=30))
    run(simulation, until=lambda: generated(simulation, 2) >= 40)
    simulation.apply("pause")
    run(simulation)


@pytest.mark.parametrize("chunk", [0, 16])
def test_an_aborted_request_is_answered_with_all_that_it_has(server_args, chunk):
    """While it waits, and between two chunks of its prompt, after it had generated."""
    simulation, answered = Simulation(Settings(**SMALL), server_args), []
    simulation.apply("arrive", **forever(1, "raas", 48, 400, private=30))
    request = simulation.requests[1]
    run(simulation, until=lambda: generated(simulation, 1) >= 60)
    simulation.apply("pause")
    if chunk:
        run(simulation, until=lambda: simulation.scheduler.chunked_req is request, chunk=chunk)
    simulation.scheduler.output_streamer = SimpleNamespace(
        stream_output=lambda reqs, *_: answered.extend(each for each in reqs if each.finished())
    )
    simulation.apply("abort", number=1)
    run(simulation)
    assert answered == [request]
    assert request.finished_reason.to_json()["type"] == "abort"
    assert len(request.output_ids) >= 60


def test_memory_runs_out_for_dense_neighbours_alone(server_args):
    """They outgrow what is reserved for them, and come back when there is room."""
    simulation = Simulation(Settings(**{**SMALL, "slots": 208}), server_args)
    simulation.apply("arrive", **forever(1, "raas", 48, 500, private=20))
    for number in (2, 3):
        simulation.apply("arrive", **forever(number, "dense", 16, 120, private=10 + number))
    small = simulation.requests[1]
    run(simulation)
    assert simulation.counts["retracted"] > 0
    assert small.retraction_count == 0
    assert not simulation.aborted


def test_a_running_request_keeps_its_reservation(server_args):
    """The second waits, since there is room for its prompt, but not for both budgets."""
    simulation = Simulation(Settings(**SMALL), server_args)
    simulation.apply("arrive", **forever(1, "raas", 48, 200, private=20))
    run(simulation, until=lambda: generated(simulation, 1) > 5)
    simulation.apply("arrive", **forever(2, "raas", 48, 200, private=10))
    run(simulation)
    assert not simulation.aborted


def test_a_prompt_in_chunks_keeps_its_reservation(server_args):
    """With the last chunk there is room for another prompt, but not for both budgets."""
    simulation = Simulation(Settings(**SMALL), server_args)
    simulation.apply("arrive", **forever(1, "raas", 48, 200, private=20))
    simulation.apply("arrive", **forever(2, "raas", 48, 200, private=10))
    run(simulation, chunk=16)
    assert not simulation.aborted


def test_a_request_that_can_never_fit_is_refused_and_blocks_nobody(server_args):
    simulation = Simulation(Settings(**SMALL), server_args)
    simulation.apply("arrive", **forever(1, "raas", 64, 900, shared=60, private=5))
    assert "must fit into the KV cache" in simulation.requests[1].to_finish.message
    simulation.apply("arrive", **forever(2, "raas", 16, 100, private=5))
    run(simulation)
    assert simulation.counts["refused"] == 1


def test_priority_retracts_a_saturated_request(server_args):
    one = {**SMALL, "requests": 1, "reserve": 200, "preempt": True}
    simulation = Simulation(Settings(**one), server_args)
    simulation.apply("arrive", **forever(1, "raas", 64, 400, private=10), priority=0)
    run(simulation, until=lambda: generated(simulation, 1) > 80)
    simulation.apply("arrive", **forever(2, "raas", 32, 60, private=20), priority=2)
    run(simulation, until=lambda: generated(simulation, 2) > 0, steps=4)
    assert simulation.requests[1].retraction_count == 1
    run(simulation)
    assert not simulation.aborted


def test_who_is_retracted_comes_back_without_a_tree(server_args):
    """There SGLang looks ahead for requests that ignore EOS, after it has retracted others."""
    settings = {**SMALL, "slots": 480, "requests": 3, "reserve": 24}
    simulation = Simulation(Settings(**settings, radix=False, preempt=True), server_args)
    simulation.apply("arrive", **forever(1, "dense", 16, 40, private=19), priority=1)
    simulation.apply("arrive", **forever(2, "raas", 32, 300, private=10), priority=0)
    simulation.apply("arrive", **forever(3, "dense", 16, 120, private=17), priority=1,
                     ignore_eos=True)  # fmt: skip
    run(simulation, until=lambda: generated(simulation, 3) > 30)
    simulation.apply("arrive", **forever(4, "dense", 16, 900, private=33), priority=2,
                     ignore_eos=True)  # fmt: skip
    run(simulation, until=lambda: simulation.requests[2].retraction_count, steps=4)
    run(simulation)
    assert not simulation.aborted


@pytest.mark.parametrize(
    ("ends", "kept"),
    [
        ({"max_new": 49}, 30 + 48),  # its last token is not computed
        ({"max_new": 50}, 30),
        ({"max_new": 900, "stop_at": 48}, 30 + 48),  # that it stops is seen a step later
        ({"max_new": 900, "stop_at": 49}, 30),
    ],
)
def test_the_tree_takes_all_until_a_step_has_overwritten(server_args, ends, kept):
    simulation = Simulation(Settings(**SMALL), server_args)
    arrival = {**forever(1, "raas", 48, 900, private=30), **ends}
    simulation.apply("arrive", **arrival)
    run(simulation)
    assert len(simulation.tree.texts()) == kept // PAGE_SIZE * PAGE_SIZE


def test_only_dense_requests_are_guessed_about(server_args):
    simulation = Simulation(Settings(**{**SMALL, "slots": 208}), server_args)
    simulation.apply("arrive", **forever(1, "raas", 48, 500, private=20))
    simulation.apply("arrive", **forever(2, "dense", 16, 120, private=10))
    run(simulation, until=lambda: generated(simulation, 2) > 10)
    guess = NewTokenRatioTracker.estimate_new_token_ratio_after_retract
    small, dense = simulation.requests[1], simulation.requests[2]
    assert guess([small, dense]) == guess([dense]) != guess([small])


def assert_waits(simulation, urgent, until_ends, victim):
    """A request of higher priority waits for another to end, and preempts nobody before."""
    preemptible = simulation.requests[victim]
    simulation.apply("arrive", **urgent)
    run(simulation, until=lambda: until_ends not in simulation.requests)
    assert preemptible.retraction_count == 0
    run(simulation)


def test_nothing_is_preempted_in_vain(server_args):
    """What a victim holds is not all that a request needs, so it waits for one that ends."""
    settings = Settings(**{**SMALL, "requests": 2, "preempt": True})
    simulation = Simulation(settings, server_args)
    simulation.apply("arrive", **forever(1, "raas", 64, 300, private=10), priority=5)
    simulation.apply("arrive", **forever(2, "raas", 16, 900, private=5), priority=0)
    run(simulation, until=lambda: generated(simulation, 1) > 70)
    urgent = forever(3, "raas", 32, 40, private=28, priority=5)
    assert_waits(simulation, urgent, until_ends=1, victim=2)


def test_a_prompt_that_others_hold_is_not_given_back(server_args):
    """Its part of the tree stays where it is, so preempting it would make too little room."""
    settings = Settings(**{**SMALL, "slots": 144, "requests": 2, "preempt": True})
    simulation = Simulation(settings, server_args)
    victim, other = {"shared": 32, "private": 8}, {"shared": 64, "private": 11}
    simulation.apply("arrive", **forever(1, "raas", 16, 300, **victim, priority=0))
    simulation.apply("arrive", **forever(2, "raas", 16, 100, **other, priority=5))
    run(simulation, until=lambda: generated(simulation, 2) > 40)
    urgent = forever(3, "raas", 48, 60, private=23, priority=5)
    assert_waits(simulation, urgent, until_ends=2, victim=1)


def test_what_preempting_gives_back_counts_once(server_args):
    """Else a second urgent request is admitted to slots that the first one is to grow into."""
    settings = Settings(**{**SMALL, "slots": 144, "requests": 2, "preempt": True})
    simulation = Simulation(settings, server_args)
    for number, private in ((1, 10), (2, 11)):
        simulation.apply("arrive", **forever(number, "raas", 16, 400, private=private))
    run(simulation, until=lambda: generated(simulation, 2) > 60)
    for number, budget, private in ((3, 32, 55), (4, 48, 13)):
        arrival = forever(number, "raas", budget, 100, private=private, priority=5)
        simulation.apply("arrive", **arrival)
    run(simulation)
    assert not simulation.aborted


def test_a_plan_does_not_outlive_the_slots_of_a_prompt(server_args):
    """Two requests with one prompt, prefilled apart: the tree takes one, and exchanges the other's.

    Both are saturated again then, so that their lengths alone do not ask for another plan.
    """
    simulation = Simulation(Settings(**{**SMALL, "slots": 160}), server_args)
    for number in (1, 2):
        simulation.apply("arrive", **forever(number, "raas", 16, 200, private=20))
    run(simulation, until=lambda: generated(simulation, 2) > 40)
    simulation.apply("pause", flush=True)
    run(simulation)
    assert simulation.counts["flushed"] == 1
    assert not simulation.aborted
