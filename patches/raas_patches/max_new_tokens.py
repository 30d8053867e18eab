"""`sglang.srt.managers.scheduler`: how many tokens a request may generate.

Why: SGLang clips `max_new_tokens` to the pool, of a prompt close to the pool's size to nothing, and
then waits for ever for memory. A bounded request may generate more than the pool holds. How: for
those the clip is done again with the context length alone, and whatever can never be admitted is
refused. The server's process has refused most of it already; only here are the tokens of a session
and of images known. Remove when: SGLang asks a request how many slots it may take.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from sglang.srt.plugins.hook_registry import HookType

from raas_patches.reservation import is_bounded, refusal
from raas_patches.seam import Seam

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.managers.scheduler import Scheduler


def init_req_max_new_tokens(
    original: Callable[["Scheduler", "Req"], None], self: "Scheduler", req: "Req"
) -> None:
    """Around it: a bounded request is limited by the context length; what cannot fit is refused."""
    params = req.sampling_params
    asked, asked_min = params.max_new_tokens, params.min_new_tokens
    original(self, req)
    if req.to_finish is not None:
        return
    if is_bounded(req):
        # As SGLang counts: one token of the context stays free, and one of the longest request.
        most = self.model_config.context_len - len(req.origin_input_ids) - 2
        if asked is not None:
            most = min(most, asked)
        if self.max_new_tokens_limit:
            most = min(most, self.max_new_tokens_limit)
        params.max_new_tokens = max(0, most)
        params.min_new_tokens = min(asked_min, params.max_new_tokens)
        asked = params.max_new_tokens
    _refuse_if_too_large(self, req, 1 if asked is None else asked)


def _refuse_if_too_large(scheduler: "Scheduler", req: "Req", new_tokens: int) -> None:
    """Ends a request that could never be admitted, so that it does not block the queue."""
    pool, page_size = scheduler.max_total_num_tokens, scheduler.page_size
    problem = refusal(req.raas.options, len(req.origin_input_ids), new_tokens, page_size, pool)
    if problem is None:
        return
    params = req.sampling_params
    # What is left of the request, one token, must itself be admitted to end.
    params.max_new_tokens, params.min_new_tokens = 1, 0
    req.set_finish_with_abort(problem)


SEAMS = (
    Seam(
        "sglang.srt.managers.scheduler.Scheduler.init_req_max_new_tokens",
        HookType.AROUND,
        init_req_max_new_tokens,
        ("self", "req"),
        "lets a bounded request generate more than the pool holds",
        "SGLang asks a request how many slots it may take",
    ),
)
