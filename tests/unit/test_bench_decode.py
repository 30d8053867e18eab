"""What `bench_decode` measures where, and the pool that it asks for."""

import argparse

import pytest

from benchmarks.harness.decode_run import Workload
from benchmarks.serving.decode import logical_lengths, parse_args, slots_needed
from reasoner import REASONER

LOAD = Workload(prompt=256, budget=1024, window=32, interval=16, seed=1, model_path=REASONER)
IN_TURNS = argparse.Namespace(batches=[16, 64], logical=None, rounds=5)
TO_LENGTHS = argparse.Namespace(batches=[16, 64], logical=[32768, 8192], rounds=5)


def test_lengths_are_after_saturation_powers_of_two_and_the_longest():
    assert logical_lengths(8192, LOAD, rounds=5) == [1584, 2048, 4096, 8192]
    assert logical_lengths(1024, LOAD, rounds=5) == [1584]
    assert logical_lengths(5000, LOAD, rounds=5) == [1584, 2048, 4096, 5000]


def test_in_turns_all_arms_have_the_pool_of_a_dense_one():
    slots = slots_needed(IN_TURNS, LOAD, is_evicting=False)
    assert slots == slots_needed(IN_TURNS, LOAD, is_evicting=True)
    assert slots >= 64 * (256 + LOAD.span(False, 5)[1])


def test_over_the_length_a_dense_arm_needs_its_longest_texts_and_an_evicting_one_its_budgets():
    assert slots_needed(TO_LENGTHS, LOAD, is_evicting=False) == 64 * (256 + 8192 + 512 + 32) + 4096
    assert slots_needed(TO_LENGTHS, LOAD, is_evicting=True) == 64 * (256 + 1024 + 32) + 4096


@pytest.mark.parametrize(
    ("given", "expected"), [(["512"], [512, 512]), (["512", "256"], [512, 256]), ([], None)]
)
def test_a_length_is_for_all_batches_or_for_its_own(monkeypatch, given, expected):
    flags = ["bench_decode.py", "--quick", "--out", "rows.jsonl"]
    monkeypatch.setattr("sys.argv", [*flags, *(["--logical", *given] if given else [])])
    assert parse_args().logical == expected


def test_another_number_of_lengths_is_refused(monkeypatch, capsys):
    flags = ["bench_decode.py", "--quick", "--out", "rows.jsonl", "--logical", "1", "2", "3"]
    monkeypatch.setattr("sys.argv", flags)
    with pytest.raises(SystemExit):
        parse_args()
    assert "one for each of [1, 4]" in capsys.readouterr().err
