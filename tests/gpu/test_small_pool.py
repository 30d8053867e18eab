"""A pool smaller than what is generated, in a real server on the GPU."""

import pytest

import small_pool

pytestmark = pytest.mark.gpu


def test_four_times_the_pool_is_generated_as_in_a_large_one(small_server, server):
    """The prompt is one piece on both servers, so both run the same kernels on it."""
    small_pool.assert_four_times_the_pool(small_server, server, length=small_pool.CHUNK - 2)


def test_who_does_not_fit_waits_and_dense_neighbours_give_way(small_server):
    small_pool.assert_dense_neighbours_give_way(small_server)


def test_a_retraction_beyond_the_pool(small_server):
    small_pool.assert_retraction_beyond_the_pool(small_server, tokens=30 * small_pool.POOL)


def test_a_request_that_can_never_fit_is_a_400(small_server):
    small_pool.assert_refusal_of_what_can_never_fit(small_server)
