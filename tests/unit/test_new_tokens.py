"""How many tokens a request may generate, as the scheduler bounds it."""

from types import SimpleNamespace

import pytest

from raas_kernels import Policy
from raas_patches.scheduler import init_req_max_new_tokens
from raas_sglang.life.options import RequestOptions
from raas_sglang.life.request import RequestState

INPUT, CONTEXT, POOL = 10, 100, 60


def sglangs(scheduler, req):
    """Stands for SGLang's, which lets no request outgrow the pool."""
    req.sampling_params.max_new_tokens = min(req.sampling_params.max_new_tokens or POOL, 40)


@pytest.mark.parametrize(
    ("asked", "asked_min", "limit", "expected"),
    [
        (None, 0, None, (88, 0)),  # the context, but for one free token and the longest's last
        (500, 400, None, (88, 88)),
        (70, 3, None, (70, 3)),
        (500, 400, 30, (30, 30)),
        (None, 0, 30, (30, 0)),
    ],
)
def test_a_bounded_request_may_outgrow_the_pool_but_not_the_context(
    asked, asked_min, limit, expected
):
    params = SimpleNamespace(max_new_tokens=asked, min_new_tokens=asked_min)
    req = SimpleNamespace(
        sampling_params=params,
        origin_input_ids=[5] * INPUT,
        to_finish=None,
        raas=RequestState(RequestOptions(Policy.RAAS, 16, evicts=True), INPUT),
    )
    scheduler = SimpleNamespace(
        max_total_num_tokens=POOL,
        page_size=1,
        max_new_tokens_limit=limit,
        model_config=SimpleNamespace(context_len=CONTEXT),
    )
    init_req_max_new_tokens(sglangs, scheduler, req)
    assert (params.max_new_tokens, params.min_new_tokens) == expected
