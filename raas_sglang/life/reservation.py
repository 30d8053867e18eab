"""How many slots a bounded request can come to hold, and how many are still to come.

A request of any policy but dense never holds more than its prompt and min(max_new_tokens, L)
generated tokens, so that much is reserved in full when it is admitted, and it is never retracted
for lack of memory: what is reserved for such requests, with what they hold, never exceeds the pool.
"""

from typing import TYPE_CHECKING

from raas_sglang.life.room import ceil_align

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req


def is_bounded(req: "Req") -> bool:
    """Whether the slots that a request can hold are known when it arrives."""
    return bool(req.raas.is_bounded)


def most_slots(req: "Req", page_size: int) -> int:
    """Slots that a bounded request can hold, shared prompt included, in whole pages."""
    input_len, new_tokens = len(req.origin_input_ids), req.sampling_params.max_new_tokens
    return ceil_align(sum(req.raas.options.most_tokens(input_len, new_tokens)), page_size)


def slots_to_admit(req: "Req", page_size: int) -> int:
    """Slots that a bounded request may still take from the pool, if it is admitted now.

    One page more than it can hold, because SGLang's allocator asks for one more than it takes.
    """
    return int(most_slots(req, page_size) - req.prefix_len + page_size)


def slots_to_grow(req: "Req", page_size: int) -> int:
    """Slots that a running bounded request may still take; 0 once it has finished."""
    if not req.kv.holds_kv:
        return 0
    return most_slots(req, page_size) - ceil_align(req.kv.kv_allocated_len, page_size)


def slots_held(req: "Req", page_size: int) -> int:
    """Slots that only this request holds, so that preempting it gives them back."""
    if not req.kv.holds_kv:
        return 0
    return int(ceil_align(req.kv.kv_allocated_len, page_size) - req.kv.cache_protected_len)
