"""How many requests there is eviction state for, and what it costs."""

import logging
from typing import NamedTuple

from raas_sglang.config import RaasConfig
from raas_sglang.state import EvictionState, StateShape

logger = logging.getLogger(__name__)

# Share of the memory for the KV cache that eviction state gets where few requests evict.
_STATE_SHARE = 0.02
# SGLang runs no more requests unless it is told to.
_MOST_REQUESTS = 4096


class RequestSlots(NamedTuple):
    """What the eviction state was sized for.

    Attributes:
        requests: That may run at a time.
        state_bytes: Device memory of their state, padding row included.
    """

    requests: int
    state_bytes: int


def reserve_slots(
    config: RaasConfig,
    shape: StateShape,
    budget_bytes: int,
    asked: int | None,
    most: int | None = None,
) -> RequestSlots:
    """Sizes the eviction state.

    Args:
        config: The server's settings.
        shape: The model's part of the state's size.
        budget_bytes: Memory for KV cache and state.
        asked: Requests that the user lets run at a time on this rank; None for no limit.
        most: Requests that SGLang can run for another reason; None for no limit.

    Raises:
        ValueError: the state of so many requests leaves too little for the KV cache.
    """
    requests = asked or request_slots(config, shape, budget_bytes)
    if most is not None:
        requests = max(1, min(requests, most))
    slot_bytes = EvictionState.bytes_per_slot(config, shape)
    state_bytes = (requests + 1) * slot_bytes
    if state_bytes > budget_bytes / 2:
        raise ValueError(
            f"--max-running-requests {requests} needs {state_bytes / 2**30:.2f} GiB of eviction "
            f"state ({slot_bytes / 2**20:.2f} MiB for each request), which must be at most half of "
            f"the memory for the KV cache ({budget_bytes / 2**30:.2f} GiB); use "
            f"--max-running-requests {int(budget_bytes / 2 / slot_bytes) - 1} or a smaller "
            "--kv-max-budget"
        )
    logger.info(
        "RaaS eviction state: %d requests of %.2f MiB, %.2f GiB in all%s",
        requests,
        slot_bytes / 2**20,
        state_bytes / 2**30,
        "" if requests in (asked, most) else "; --max-running-requests allows for more",
    )
    return RequestSlots(requests, state_bytes)


def request_slots(config: RaasConfig, shape: StateShape, budget_bytes: int) -> int:
    """Requests that there is eviction state for, where the user did not say how many may run.

    With a server policy that evicts: as many as hold a full budget each, for no more could, as far
    as their state fits into half of the memory.
    Otherwise what a small share of the memory pays for, since most requests will need none.

    Args:
        config: The server's settings.
        shape: The model's part of the state's size.
        budget_bytes: Memory for KV cache and state.
    """
    slot_bytes = EvictionState.bytes_per_slot(config, shape)
    if config.evicts:
        full_bytes = slot_bytes + config.max_budget * shape.token_bytes
        # Of a small budget the state is the larger part.
        slots = min(budget_bytes // full_bytes, budget_bytes // 2 // slot_bytes, _MOST_REQUESTS)
    else:
        slots = int(_STATE_SHARE * budget_bytes / slot_bytes)
    return max(1, slots - 1)
