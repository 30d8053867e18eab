"""A pool smaller than what is generated, in a real server on the CPU."""

import small_pool


def test_four_times_the_pool_is_generated_as_in_a_large_one(small_server, server):
    small_pool.assert_four_times_the_pool(small_server, server, length=40)


def test_who_does_not_fit_waits_and_dense_neighbours_give_way(small_server):
    small_pool.assert_dense_neighbours_give_way(small_server)


def test_a_retraction_beyond_the_pool(small_server):
    small_pool.assert_retraction_beyond_the_pool(small_server, tokens=2 * small_pool.POOL)


def test_a_request_that_can_never_fit_is_a_400(small_server):
    small_pool.assert_refusal_of_what_can_never_fit(small_server)


def test_a_refusal_comes_before_the_answer(small_server):
    small_pool.assert_refusals_come_before_the_answer(small_server)


def test_a_prompt_just_below_the_pool_is_served(small_server):
    small_pool.assert_a_prompt_just_below_the_pool(small_server)


def test_an_answer_without_tokens_has_its_report(small_server):
    small_pool.assert_an_answer_without_tokens_has_its_report(small_server)


def test_who_is_aborted_while_waiting_answers_as_who_runs(small_server):
    small_pool.assert_who_is_aborted_while_waiting_answers(small_server)
