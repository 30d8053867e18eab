"""The list of rows that are scored, against plain Python."""

import os

import pytest
import torch

from raas_kernels import DecodeBatch, Policy, RequestTables, ScoreScratch, StepOptions

STEPS = 8


def listed(device, policies, prompt_lens, steps):
    """What the kernel lists of rows at these steps of their requests."""
    from raas_kernels.due_rows import list_due_rows

    def column(values, dtype=torch.int32):
        return torch.tensor(values, dtype=dtype, device=device)

    positions = [prompt + step for prompt, step in zip(prompt_lens, steps, strict=True)]
    unused = column([])
    tables = RequestTables(column(policies), column(prompt_lens), unused, unused, unused)
    batch = DecodeBatch(unused, column(positions, torch.int64), unused, unused, unused, tables)
    due_rows = torch.full((len(steps) + 1,), -77, dtype=torch.int32, device=device)
    scratch = ScoreScratch(due_rows, column([-77]), torch.empty(0, device=device))
    list_due_rows(scratch, batch, StepOptions(2, 0, True, None, STEPS))
    return due_rows.tolist(), scratch.due_count.item()


def check(device, rows):
    generator = torch.Generator().manual_seed(rows)
    policies = torch.randint(0, len(Policy), (rows,), generator=generator).tolist()
    prompt_lens = torch.randint(1, 999, (rows,), generator=generator).tolist()
    steps = torch.randint(0, 4 * STEPS, (rows,), generator=generator).tolist()
    want = [
        row
        for row, (policy, step) in enumerate(zip(policies, steps, strict=True))
        if policy == Policy.RAAS and step % STEPS == STEPS - 1
    ]
    due_rows, count = listed(device, policies, prompt_lens, steps)
    assert count == len(want)
    assert due_rows == [*want, *[-77] * (rows + 1 - len(want))]


# The kernel takes 1,024 rows at a time.
@pytest.mark.parametrize("rows", [1, 7, 1024, 1025, 2500])
def test_interpreted_kernel(rows):
    assert os.environ.get("TRITON_INTERPRET") == "1", (
        "run with TRITON_INTERPRET=1, as make test does"
    )
    check("cpu", rows)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 7, 1024, 1025, 2500])
def test_compiled_kernel(rows):
    check("cuda", rows)


def test_none_is_due():
    assert listed("cpu", [1, 1, 0], [5, 9, 3], [0, STEPS, STEPS - 1]) == ([-77] * 4, 0)


@pytest.mark.gpu
def test_none_is_due_on_a_gpu():
    assert listed("cuda", [1, 1, 0], [5, 9, 3], [0, STEPS, STEPS - 1]) == ([-77] * 4, 0)
