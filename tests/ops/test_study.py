"""The study's kernels against the same in plain torch."""

import os

import pytest
import torch

from benchmarks.accuracy.study.attention import Statistics, attend, expected
from benchmarks.accuracy.study.kernels import attend_triton, expected_triton

LENGTHS = (70, 5, 33)  # of the prompts
BUDGET = 40
KERNELS = {"attend": (attend_triton, attend), "expected": (expected_triton, expected)}


class Problem:
    """Random slots and prompts of 2 rows and 2 KV heads; rows are not in the prompts' order."""

    def __init__(self, device, group, layers=1):
        generator = torch.Generator().manual_seed(3)

        def normal(*shape):
            return torch.randn(shape, generator=generator).to(device)

        self.group, self.layers = group, layers
        self.q = normal(2, 2, group, 64)
        self.slots = [normal(layers, 2, 2, BUDGET, 64) for _ in "kv"]
        self.prompts = [normal(layers, 2, sum(LENGTHS), 64) for _ in "kv"]
        self.where = torch.tensor([75, 0], device=device), torch.tensor([33, 70], device=device)
        self.mean = normal(layers, 2, 2, group, 64)
        self.half_variance = torch.rand(self.mean.shape, generator=generator).to(device)
        self.origin = normal(layers, 2, 2, 64)

    def attend(self, of, step, is_wanted):
        device = self.q.device
        statistics = [torch.zeros(2, 2, BUDGET, device=device) for _ in range(4)]
        slots, prompt = ([x[0] for x in pair] for pair in (self.slots, self.prompts))
        wanted = Statistics(*statistics) if is_wanted else None
        at = torch.tensor([step], device=device)
        out = of(self.q, slots, prompt, self.where, at, 0.125, wanted)
        return out, *statistics

    def expected(self, of, with_prompt, count):
        keys, prompt_keys = self.slots[0], self.prompts[0]
        moments = self.mean, self.half_variance, self.origin
        return of(*moments, keys, prompt_keys, self.where, count, with_prompt)


def check(device, kernel, group, *arguments):
    layers = 3 if kernel == "expected" else 1
    triton_of, torch_of = KERNELS[kernel]
    found = getattr(Problem(device, group, layers), kernel)(triton_of, *arguments)
    wanted = getattr(Problem("cpu", group, layers), kernel)(torch_of, *arguments)
    # A GPU multiplies in TF32.
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if device == "cpu" else {"rtol": 1e-2, "atol": 5e-2}
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x.cpu(), y, **tolerance)


ATTEND = [(9, True), (BUDGET - 1, False), (BUDGET + 30, True)]
EXPECTED = [(False, 33), (True, BUDGET)]
CASES = pytest.mark.parametrize(
    ("kernel", "arguments"),
    [*(("attend", case) for case in ATTEND), *(("expected", case) for case in EXPECTED)],
)
GROUPS = pytest.mark.parametrize("group", [1, 7])


@CASES
@GROUPS
def test_interpreted_kernel(kernel, arguments, group):
    assert os.environ.get("TRITON_INTERPRET") == "1", (
        "run with TRITON_INTERPRET=1, as make test does"
    )
    check("cpu", kernel, group, *arguments)


@pytest.mark.gpu
@CASES
@GROUPS
def test_compiled_kernel(kernel, arguments, group):
    check("cuda", kernel, group, *arguments)
