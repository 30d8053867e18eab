"""SGLang's decode lines, as benchmarks read them."""

import pytest

from benchmarks.harness.decode_log import decode_batches, retractions

LINE = (
    "[2026-11-22 21:00:00] Decode batch, #running-req: 4, #token: 474, token usage: 0.02, "
    "#raas-req: 4, #logical token: 1123, #resident token: 843, #evicted token: 280, "
    "budget usage: 1.00, cuda graph: True, gen throughput (token/s): 200.00, #queue-req: 3\n"
)
PLAIN = (
    "[2026-11-22 21:00:01] Decode batch, #running-req: 2, #token: 90, token usage: 0.01, "
    "cpu graph: False, gen throughput (token/s): 50.00, #queue-req: 0"
)
FULL = "KV cache pool is full. Retract requests. #retracted_reqs: {}, #new_tokens_gained: 41\n"


def test_lines_with_and_without_the_plugin():
    ours, plain = decode_batches("Prefill batch, #new-seq: 1\n" + LINE + PLAIN)
    assert ours == (4, 3, 474, 1123, 200.0, True)
    assert ours.step_ms == pytest.approx(20.0)
    assert plain == (2, 0, 90, None, 50.0, False)


def test_a_line_that_is_still_being_written_is_left_for_later():
    assert decode_batches(LINE + PLAIN[: PLAIN.index("#queue-req")]) == decode_batches(LINE)


def test_only_a_full_pool_counts_as_a_retraction():
    forced = "Testing retraction. #retracted_reqs: 7, #new_tokens_gained: 1\n"
    assert retractions(FULL.format(2) + forced + FULL.format(1)) == 3
