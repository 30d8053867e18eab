"""`sglang.srt.managers.scheduler`: how many tokens a request may generate.

Why: SGLang clips `max_new_tokens` to the pool. A bounded request may generate more than the pool
holds. How: the clip is done again with the context length alone, and a request that can never be
admitted is refused. Remove when: SGLang asks a request how many slots it may take.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from sglang.srt.plugins.hook_registry import HookType

from raas_patches.reservation import is_bounded, most_slots
from raas_patches.seam import Seam

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.managers.scheduler import Scheduler


def init_req_max_new_tokens(
    original: Callable[["Scheduler", "Req"], None], self: "Scheduler", req: "Req"
) -> None:
    """Around it: a bounded request is limited by the context length, or refused."""
    params = req.sampling_params
    asked, asked_min = params.max_new_tokens, params.min_new_tokens
    original(self, req)
    if not is_bounded(req) or req.to_finish is not None:
        return
    # As SGLang counts: one token of the context stays free, and one of the longest request.
    most = self.model_config.context_len - len(req.origin_input_ids) - 2
    if asked is not None:
        most = min(most, asked)
    if self.max_new_tokens_limit:
        most = min(most, self.max_new_tokens_limit)
    params.max_new_tokens = max(0, most)
    params.min_new_tokens = min(asked_min, params.max_new_tokens)
    _refuse_if_too_large(self, req)


def _refuse_if_too_large(scheduler: "Scheduler", req: "Req") -> None:
    """Ends a request that could never be admitted, so that it does not block the queue."""
    pool, page_size = scheduler.max_total_num_tokens, scheduler.page_size
    if most_slots(req, page_size) + page_size < pool:
        return
    params = req.sampling_params
    generated = min(params.max_new_tokens, req.raas.options.budget)
    # What is left of the request, one token, must itself be admitted to end.
    params.max_new_tokens, params.min_new_tokens = 1, 0
    req.set_finish_with_abort(
        f"prompt ({len(req.origin_input_ids)} tokens) and kept tokens ({generated}, the smaller of "
        f"max_new_tokens and kv_budget) must fit into the KV cache with a page to spare "
        f"({pool - page_size - 1} tokens); send a shorter prompt or a smaller kv_budget"
    )


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
