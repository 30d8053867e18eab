"""What admission promises, said again without the product's code, for the scheduler simulation."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.server_args import ServerArgs

from memory_model import ModelRequest, require


def check_refusal(
    req: Req, prompt_len: int, asked: tuple[int, int], page_size: int, slots: int
) -> bool:
    """A request that is not dense is refused if it can never fit, else its limit stays.

    ``asked`` is its ``max_new_tokens`` and its budget. Returns whether it was refused, rightly.
    """
    pages = -(-(prompt_len + min(asked)) // page_size) + 1
    fits = pages * page_size < slots
    require(fits == (req.to_finish is None), "refusal", f"{pages} pages: {req.to_finish}")
    limit = req.sampling_params.max_new_tokens
    require(not fits or limit == asked[0], "unclipped", f"{limit} of {asked[0]} tokens")
    return not fits


def watched_retraction(
    requests: Mapping[int, ModelRequest], aborted: set[int], counts: Counter[str], forced: bool
) -> Callable[[ScheduleBatch, ServerArgs], Any]:
    """SGLang's `retract_decode`, watched: memory runs out for dense requests alone.

    ``aborted`` takes the requests that SGLang gives up for good. In a ``forced`` round memory did
    not run out.
    """
    original = ScheduleBatch.retract_decode

    def watched(batch: ScheduleBatch, server_args: ServerArgs) -> Any:
        result = original(batch, server_args)
        retracted, _, gone = result
        aborted.update(int(req.rid) for req in gone)
        if not forced:
            policies = {int(req.rid): requests[int(req.rid)].policy for req in retracted + gone}
            require(set(policies.values()) <= {"dense"}, "no_retraction", str(policies))
            counts["retracted"] += len(policies)
        return result

    return watched
