"""What admission promises, said again without the product's code, for the scheduler simulation."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

from memory_model import ModelRequest, require


def check_refusal(
    req: Req, prompt_len: int, asked: tuple[int, int | None], page_size: int, slots: int
) -> bool:
    """A request is refused if it can never fit; else the limit of one that is not dense stays.

    ``asked`` is its ``max_new_tokens`` and its budget, None if it is dense; then it needs room for
    its prompt and one token. Returns whether it was refused, rightly.
    """
    most, budget = asked
    limit = req.sampling_params.max_new_tokens
    if budget is None:
        needed = -(-prompt_len // page_size) * page_size + 1
    else:
        needed = -(-(prompt_len + min(most, budget)) // page_size) * page_size
    fits = needed + page_size < slots
    require(fits == (req.to_finish is None), "refusal", f"{needed} slots: {req.to_finish}")
    unclipped = limit == most if budget is not None else 0 < limit <= most
    require(not fits or unclipped, "unclipped", f"{limit} of {most} tokens")
    return not fits


def watched_retraction(
    requests: Mapping[int, ModelRequest], aborted: set[int], counts: Counter[str], forced: bool
) -> Callable[[ScheduleBatch], Any]:
    """SGLang's `retract_decode`, watched: memory runs out for dense requests alone.

    ``aborted`` takes the requests that SGLang gives up for good. In a ``forced`` round memory did
    not run out.
    """
    original = ScheduleBatch.retract_decode

    def watched(batch: ScheduleBatch) -> Any:
        result = original(batch)
        retracted, _, gone = result
        aborted.update(int(req.rid) for req in gone)
        if not forced:
            policies = {int(req.rid): requests[int(req.rid)].policy for req in retracted + gone}
            require(set(policies.values()) <= {"dense"}, "no_retraction", str(policies))
            counts["retracted"] += len(policies)
        return result

    return watched
