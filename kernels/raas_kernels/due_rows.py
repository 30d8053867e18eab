"""The rows of a decode step whose tokens are scored, so that the others cost no program."""

import triton
import triton.language as tl

from raas_kernels.buffers import ScoreScratch
from raas_kernels.layout import DecodeBatch
from raas_kernels.select import RAAS

_BLOCK_ROWS = 1024


def list_due_rows(scratch: ScoreScratch, batch: DecodeBatch) -> None:
    """Lists the rows whose step is the last of their period, in their order.

    What raas knows is needed when a place is chosen, so its rows are due from the last step on that
    still found a free place.

    Args:
        scratch: ``due_rows`` and ``due_count`` are written.
        batch: Rows of the step.
    """
    _list_due_rows_kernel[(1,)](
        **scratch.pointers("due_rows", "due_count"),
        **batch.pointers("positions"),
        **batch.requests.pointers("policies", "prompt_lens", "budgets", "periods"),
        num_rows=batch.positions.shape[0],
        BLOCK_ROWS=_BLOCK_ROWS,
    )


@triton.jit
def _list_due_rows_kernel(
    due_rows_ptr,
    due_count_ptr,
    positions_ptr,
    policies_ptr,
    prompt_lens_ptr,
    budgets_ptr,
    periods_ptr,
    num_rows,
    BLOCK_ROWS: tl.constexpr,
):
    count = tl.zeros((), tl.int32)
    for first in range(0, num_rows, BLOCK_ROWS):
        rows = first + tl.arange(0, BLOCK_ROWS)
        inside = rows < num_rows
        policies = tl.load(policies_ptr + rows, mask=inside, other=0)
        positions = tl.load(positions_ptr + rows, mask=inside, other=0).to(tl.int32)
        done = positions + 1 - tl.load(prompt_lens_ptr + rows, mask=inside, other=0)
        budgets = tl.load(budgets_ptr + rows, mask=inside, other=0)
        periods = tl.load(periods_ptr + rows, mask=inside, other=0)
        due = (periods > 0) & (done % tl.maximum(periods, 1) == 0)
        due = due & ((policies != RAAS) | (done >= budgets))
        places = count + tl.cumsum(due.to(tl.int32), axis=0) - 1
        tl.store(due_rows_ptr + places, rows, mask=due)
        count += tl.sum(due.to(tl.int32), axis=0)
    tl.store(due_count_ptr, count)
