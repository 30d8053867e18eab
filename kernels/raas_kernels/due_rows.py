"""The rows of a decode step whose pages are scored, so that the others cost no program."""

import triton
import triton.language as tl

from raas_kernels.layout import DecodeBatch, ScoreScratch, StepOptions
from raas_kernels.select import RAAS

_BLOCK_ROWS = 1024


def list_due_rows(scratch: ScoreScratch, batch: DecodeBatch, options: StepOptions) -> None:
    """Lists the RaaS rows whose step is the last of `StepOptions.scored_steps`, in their order.

    Args:
        scratch: ``due_rows`` and ``due_count`` are written.
        batch: Rows of the step.
        options: Server-wide choices.
    """
    _list_due_rows_kernel[(1,)](
        scratch.due_rows,
        scratch.due_count,
        batch.positions,
        batch.requests.policies,
        batch.requests.prompt_lens,
        batch.positions.shape[0],
        BLOCK_ROWS=_BLOCK_ROWS,
        SCORED_STEPS=options.scored_steps,
    )


@triton.jit
def _list_due_rows_kernel(
    due_rows_ptr,
    due_count_ptr,
    positions_ptr,
    policies_ptr,
    prompt_lens_ptr,
    num_rows,
    BLOCK_ROWS: tl.constexpr,
    SCORED_STEPS: tl.constexpr,
):
    count = tl.zeros((), tl.int32)
    for first in range(0, num_rows, BLOCK_ROWS):
        rows = first + tl.arange(0, BLOCK_ROWS)
        inside = rows < num_rows
        policies = tl.load(policies_ptr + rows, mask=inside, other=0)
        positions = tl.load(positions_ptr + rows, mask=inside, other=0).to(tl.int32)
        steps = positions - tl.load(prompt_lens_ptr + rows, mask=inside, other=0)
        due = (policies == RAAS) & ((steps + 1) % SCORED_STEPS == 0)
        places = count + tl.cumsum(due.to(tl.int32), axis=0) - 1
        tl.store(due_rows_ptr + places, rows, mask=due)
        count += tl.sum(due.to(tl.int32), axis=0)
    tl.store(due_count_ptr, count)
