"""The list of rows that are scored, against plain Python."""

import os

import pytest
import torch

from raas_kernels import DecodeBatch, Policy, RequestTables, ScoreScratch


def listed(device, policies, prompt_lens, budgets, steps):
    """What the kernel lists of rows at these steps of their requests."""
    from raas_kernels.due_rows import list_due_rows

    def column(values, dtype=torch.int32):
        return torch.tensor(values, dtype=dtype, device=device)

    positions = [prompt + step for prompt, step in zip(prompt_lens, steps, strict=True)]
    periods = [Policy(p).period(budget) for p, budget in zip(policies, budgets, strict=True)]
    unused = column([])
    tables = RequestTables(
        policies=column(policies),
        prompt_lens=column(prompt_lens),
        budgets=column(budgets),
        periods=column(periods),
        first_steps=unused,
        capacities=unused,
    )
    batch = DecodeBatch(
        req_pool_indices=unused,
        positions=column(positions, torch.int64),
        out_cache_loc=unused,
        kv_indptr=unused,
        kv_indices=unused,
        requests=tables,
    )
    due_rows = torch.full((len(steps) + 1,), -77, dtype=torch.int32, device=device)
    nothing = torch.empty(0, device=device)
    scratch = ScoreScratch(
        due_rows=due_rows, due_count=column([-77]), logits=nothing, scores=nothing
    )
    list_due_rows(scratch, batch)
    return due_rows.tolist(), scratch.due_count.item()


def is_due(policy, budget, step):
    """At each step of raas-paper and h2o; of raas every few steps once no place is free."""
    if policy in (Policy.RAAS_PAPER, Policy.H2O):
        return True
    every = 8 if budget >= 512 else 4
    return policy == Policy.RAAS and step + 1 >= budget and (step + 1) % every == 0


def check(device, rows):
    generator = torch.Generator().manual_seed(rows)

    def drawn(low, high):
        return torch.randint(low, high, (rows,), generator=generator).tolist()

    policies, prompt_lens = drawn(0, len(Policy)), drawn(1, 999)
    budgets = [16 * unit for unit in drawn(1, 65)]
    steps = [int(budget * part / 100) for budget, part in zip(budgets, drawn(0, 300), strict=True)]
    rows_of = enumerate(zip(policies, budgets, steps, strict=True))
    want = [row for row, asked in rows_of if is_due(*asked)]
    due_rows, count = listed(device, policies, prompt_lens, budgets, steps)
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


NONE_DUE = ([1, 1, 0, 3], [5, 9, 3, 2], [64, 64, 64, 64], [3, 65, 63, 63])


def test_none_is_due():
    assert listed("cpu", *NONE_DUE) == ([-77] * 5, 0)


@pytest.mark.gpu
def test_none_is_due_on_a_gpu():
    assert listed("cuda", *NONE_DUE) == ([-77] * 5, 0)
