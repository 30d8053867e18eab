"""What the torch rules make of logits that are no numbers, as the kernels do."""

import pytest
import torch

from raas_kernels import Policy
from raas_kernels.layout import LONG_PERIOD, PAPER_PAGE
from raas_kernels.torch_victims import Heads, Row, paper_victim

STEP, BUDGET = 4 * PAPER_PAGE - 1, 3 * PAPER_PAGE


@pytest.mark.parametrize(("spoilt", "stamped"), [(1, 0), (PAPER_PAGE, 1)])
def test_a_page_is_worth_its_largest_number(spoilt, stamped):
    """A NaN is below all, so it does not keep a page, and others of its page still do."""
    births = torch.arange(PAPER_PAGE, STEP + 1).view(1, -1)
    logits = torch.ones(1, 1, BUDGET)
    logits[..., :PAPER_PAGE] = 5.0
    logits[..., :spoilt] = float("nan")
    victims = torch.zeros(1, LONG_PERIOD, dtype=torch.int32)
    heads = Heads(births.int(), births.float(), torch.ones(1, BUDGET), victims)
    row = Row(0, 1, STEP, Policy.RAAS_PAPER, 0, BUDGET, PAPER_PAGE, 0, BUDGET)
    paper_victim(row, logits, heads)
    pages = heads.weights.view(3, PAPER_PAGE).amax(1)
    assert pages[stamped] == STEP
    assert victims[0, 0] == 1 - stamped
