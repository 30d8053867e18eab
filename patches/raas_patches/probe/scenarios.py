"""What a request may go through, each with what must hold at its end."""

from collections.abc import Callable, Iterator
from typing import Any

from sglang.srt.server_args import ServerArgs

from raas_patches.probe.machine import SLOTS, Machine, ProbeError, require

P, L = 20, 16
RAAS: dict[str, Any] = {"kv_policy": "raas", "kv_budget": L}
WINDOW: dict[str, Any] = {"kv_policy": "window", "kv_budget": L}


def dense(machine: Machine) -> None:
    """A dense request leaves all of its text in the radix tree."""
    machine.arrive("a", P, 24, kv_policy="dense")
    machine.finish()
    _shares(machine, "a", P + 23)


def ends_without_a_step_in_flight(machine: Machine) -> None:
    """A request that ends with L + 1 tokens overwrote nothing, and may share P + L."""
    machine.arrive("a", P, L + 1, **RAAS)
    machine.finish()
    _shares(machine, "a", P + L)


def ends_with_a_step_in_flight(machine: Machine) -> None:
    """One that stops at L + 1 tokens has overwritten in the step in flight, and shares P."""
    machine.arrive("a", P, 100, stop_at=L + 1, **RAAS)
    machine.finish()
    _shares(machine, "a", P)


def saturates(machine: Machine) -> None:
    """Its slots stay at P + L while its text goes on, beyond the pool; the tree holds P tokens."""
    machine.arrive("a", P, SLOTS + 40, **RAAS)
    machine.finish()
    _shares(machine, "a", P)


def retracts_and_resumes(machine: Machine) -> None:
    """It is prefilled with P + L tokens at the most, goes on in its text, and shares P."""
    # What a window gives up is known beforehand, so that tokens in wrong places are noticed.
    reqs = [machine.arrive("a", P, 60, **RAAS), machine.arrive("b", P, 60, **WINDOW)]
    while len(reqs[0].output_ids) < 30:
        machine.step()
    machine.step(retract=True)
    machine.finish()
    require(any(req.retraction_count for req in reqs), "nothing was retracted")
    _shares(machine, "a", P)
    _shares(machine, "b", P)


def waits_for_its_budget(machine: Machine) -> None:
    """What is reserved is never given twice, so nobody is retracted for lack of memory."""
    reqs = [machine.arrive(name, 60, 40, **RAAS) for name in "abc"]
    machine.step()
    running = sum(req.kv.holds_kv for req in reqs)
    require(running == 2, f"{running} of 3 were admitted, where two fit")
    machine.finish()
    require(not any(req.retraction_count for req in reqs), "a bounded request was retracted")


SCENARIOS: tuple[Callable[[Machine], None], ...] = (
    dense,
    ends_without_a_step_in_flight,
    ends_with_a_step_in_flight,
    saturates,
    retracts_and_resumes,
    waits_for_its_budget,
)


def play(server_args: ServerArgs) -> Iterator[tuple[str, str | None, str]]:
    """Plays every scenario: its name, what did not hold in it, and what was asked for."""
    for scenario in SCENARIOS:
        problem, machine = None, Machine(server_args)
        try:
            scenario(machine)
            _leaks_nothing(machine)
        except Exception as error:  # noqa: BLE001 - whatever another SGLang does is to be told
            kind = "" if isinstance(error, ProbeError) else f"{type(error).__name__}: "
            problem = f"{kind}{error}"
        yield scenario.__name__, problem, (scenario.__doc__ or "").strip()


def _shares(machine: Machine, name: str, tokens: int) -> None:
    found = machine.shared(name)
    require(found == tokens, f"tree_purity: the tree holds {found} tokens of {name}, not {tokens}")


def _leaks_nothing(machine: Machine) -> None:
    rows = machine.rows
    require(len(rows.free_slots) == rows.size, "conservation: a request slot is still held")
    require(machine.tree.protected_size() == 0, "conservation: a node of the tree is still held")
