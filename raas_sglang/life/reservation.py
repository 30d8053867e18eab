"""How many slots a request can come to hold, and which requests can never have them.

A request of any policy but dense never holds more than its prompt and min(max_new_tokens, L)
generated tokens, so that much is reserved in full when it is admitted, and it is never retracted
for lack of memory: what is reserved for such requests, with what they hold, never exceeds the pool.
"""

from typing import TYPE_CHECKING

from raas_sglang.life.options import RequestOptions

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req


def refusal(
    options: RequestOptions, input_len: int, new_tokens: int, page_size: int, pool: int
) -> str | None:
    """Says why a request could never be admitted, not even by an empty server, or None.

    It would wait for ever, and block the queue for everybody.

    Args:
        options: What it asked for.
        input_len: Tokens of its input.
        new_tokens: Tokens that it may generate.
        page_size: Tokens of a page of the pool.
        pool: Tokens that the pool holds.
    """
    prompt_len = input_len
    if options.is_bounded:
        prompt_len, kept = _most_tokens(options, input_len, new_tokens)
        needed = ceil_align(prompt_len + kept, page_size)
        what = f"kept tokens ({kept}, the smaller of max_new_tokens and kv_budget)"
        advice = "send a shorter prompt or a smaller kv_budget"
    else:  # SGLang lets it generate what the pool has room for
        first = min(new_tokens, 1)
        needed = ceil_align(prompt_len, page_size) + first
        what, advice = f"generated tokens (at least {first})", "send a shorter prompt"
    if needed + page_size < pool:
        return None
    return (
        f"prompt ({prompt_len} tokens) and {what} must fit into the KV cache with a page to spare "
        f"({usable(page_size, pool)} tokens); {advice}"
    )


def ceil_align(tokens: int, page_size: int) -> int:
    """Tokens in whole pages."""
    return -(-tokens // page_size) * page_size


def usable(page_size: int, pool: int) -> int:
    """Tokens of a pool, in whole pages, that one request can be given.

    SGLang's allocator asks for a page more than it takes, and for less than the pool.
    """
    return (pool - page_size - 1) // page_size * page_size


def is_bounded(req: "Req") -> bool:
    """Whether the slots that a request can hold are known when it arrives."""
    return bool(req.raas.is_bounded)


def most_slots(req: "Req", page_size: int) -> int:
    """Slots that a bounded request can hold, shared prompt included, in whole pages."""
    input_len, new_tokens = len(req.origin_input_ids), req.sampling_params.max_new_tokens
    return int(ceil_align(sum(_most_tokens(req.raas.options, input_len, new_tokens)), page_size))


def _most_tokens(options: RequestOptions, input_len: int, new_tokens: int) -> tuple[int, int]:
    """Tokens of the prompt of a bounded request, and generated ones that it keeps at most."""
    prompt_len = options.prompt_of(input_len)
    return prompt_len, min(input_len - prompt_len + new_tokens, options.budget)


def slots_to_admit(req: "Req", page_size: int) -> int:
    """Slots that a bounded request may still take from the pool, if it is admitted now.

    One page more than it can hold, because SGLang's allocator asks for one more than it takes.
    """
    return int(most_slots(req, page_size) - req.prefix_len + page_size)


def slots_to_grow(req: "Req", page_size: int) -> int:
    """Slots that a running bounded request may still take; 0 once it has finished."""
    if not req.kv.holds_kv:
        return 0
    return most_slots(req, page_size) - int(ceil_align(req.kv.kv_allocated_len, page_size))


def slots_held(req: "Req", page_size: int) -> int:
    """Slots that only this request holds, so that interrupting it gives them back."""
    if not req.kv.holds_kv:
        return 0
    return int(ceil_align(req.kv.kv_allocated_len, page_size) - req.kv.cache_protected_len)
