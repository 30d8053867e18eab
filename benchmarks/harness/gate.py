"""What must hold before anything is timed: an eviction that is not needed changes no token."""

from collections.abc import Sequence
from typing import Any

from benchmarks.harness.arms import Arm
from benchmarks.harness.cli import say
from benchmarks.harness.decode_run import DecodeRun, Workload
from benchmarks.harness.rows import RowFile

BATCH = 4


def check_tokens(
    arms: Sequence[Arm], load: Workload, rows: RowFile, config: dict[str, Any], deadline: float
) -> None:
    """Compares the tokens of all arms and policies while no budget is full, and stores how many.

    Raises:
        RuntimeError: a policy gave others than a dense cache.
    """
    reference: list[list[int]] | None = None
    for arm in (arm for arm in arms if arm.has_plugin):
        for policy in ("dense", "raas"):
            run = DecodeRun(arm, load, BATCH, tokens=load.checked_tokens + 16)
            tokens = run.first_tokens(policy, load.checked_tokens, deadline)
            reference = reference or tokens
            if tokens != reference:
                raise RuntimeError(
                    f"policy {policy} of arm {arm.name} must give the tokens of a dense cache "
                    f"while the budget is not full, got {tokens} for {reference}"
                )
            count = sum(map(len, tokens))
            chosen = {**config, "arm": arm.name, "policy": policy, "batch": BATCH}
            rows.write("tokens equal to a dense cache's", [count], "tokens", chosen)
            say(f"{arm.name}, policy {policy}: {count} tokens as with a dense cache")
