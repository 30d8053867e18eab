"""Prompts that go to the host and come back, with the copies of a GPU."""

import pytest

import hicache
from client import EVICTING

pytestmark = pytest.mark.gpu


def test_a_prompt_comes_back_as_it_went(tiered_server):
    hicache.assert_a_prompt_comes_back_as_it_went(tiered_server)


@pytest.mark.parametrize("policy", EVICTING)
def test_evicting_over_a_prompt_from_the_host(tiered_server, policy):
    hicache.assert_evicting_over_a_prompt_from_the_host(tiered_server, policy)


def test_the_host_holds_nothing_that_was_overwritten(hicache_server):
    hicache.assert_the_host_holds_nothing_that_was_overwritten(hicache_server, page_size=16)


def test_the_host_holds_nothing_that_was_overwritten_with_write_back(write_back_server):
    hicache.assert_the_host_holds_nothing_that_was_overwritten(write_back_server, page_size=1)


def test_many_load_and_evict_side_by_side(hicache_server):
    hicache.assert_many_load_and_evict_side_by_side(hicache_server)


def test_a_resumed_request_loads_its_prompt(write_back_server):
    hicache.assert_a_resumed_request_loads_its_prompt(write_back_server)
