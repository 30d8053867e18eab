"""Prompts that go to the host and come back: SGLang's tree and scheduler, with copies of ours."""

from collections.abc import Iterator

import pytest

import hicache
from benchmarks.harness.server import LocalServer
from conftest import beside, start_server
from forked_server import ForkingServer


@pytest.fixture(scope="module")
def write_back_server() -> Iterator[LocalServer]:
    """RaaS with a hierarchical cache that copies what is evicted; the most urgent request runs."""
    flags = ("--kv-policy", "raas", "--kv-budget", "64", "--kv-max-budget", "512")
    more = (*hicache.FLAGS, *hicache.WRITE_BACK, *hicache.ONE_BY_ONE)
    with start_server(*flags, *more, kind=ForkingServer, **beside("hicache")) as running:
        yield running
        assert running.is_alive(), running.log_end()


def test_a_prompt_comes_back_as_it_went(write_back_server):
    hicache.assert_a_prompt_comes_back_as_it_went(write_back_server)


def test_evicting_over_a_prompt_from_the_host(write_back_server):
    hicache.assert_evicting_over_a_prompt_from_the_host(write_back_server, "raas")


def test_the_host_holds_nothing_that_was_overwritten(write_back_server):
    hicache.assert_the_host_holds_nothing_that_was_overwritten(write_back_server, page_size=1)


def test_a_resumed_request_loads_its_prompt(write_back_server):
    hicache.assert_a_resumed_request_loads_its_prompt(write_back_server)
