"""The steady state of a server with a full queue, without the hours that it takes to get there.

When requests of N tokens have come and gone for long enough, those that run are evenly spread over
their lives. That state is put together from requests at staggered depths. A dense one at depth d is
a prompt of P + d tokens that has N - d to go: same slots, same attention, a prefill instead of d
steps. An evicting one holds the same P + L slots at any depth above L, so it is a prompt of P with
N - d to go, and all of them are saturated before anything is timed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.harness.prompts import Prompts
from benchmarks.harness.queue import Request


@dataclass(frozen=True)
class Work:
    """What every request is.

    Attributes:
        prompt: P in tokens.
        output: N, tokens that it generates.
        budget: L in tokens, None where nothing is given up.
    """

    prompt: int
    output: int
    budget: int | None

    @property
    def mean_slots(self) -> float:
        """Slots of a request: its mean over its life, or what is reserved where L bounds it."""
        if self.budget is None:
            return self.prompt + self.output / 2
        return self.prompt + min(self.output, self.budget)

    @property
    def steps_to_saturation(self) -> int:
        """Decode steps until the slots of a request that begins now are those of any later step."""
        return 0 if self.budget is None else min(self.output, self.budget)

    def fitting(self, pool: int, most: int, steps: int) -> int:
        """Requests that fit into a pool of so many slots, as far as so many may run.

        Requests that keep every token hold the most just before one of them ends: half an output
        above their mean. The pilot is one of them and has only begun, which makes up for that; what
        it generates in so many steps must fit beside them.
        """
        spare = 0 if self.budget is not None else min(steps, self.output)
        return max(1, min(most, int((pool - spare) / self.mean_slots)))

    def staggered(self, count: int) -> list[tuple[int, int]]:
        """Prompt and output tokens of requests that are evenly spread over their lives.

        The deepest come first, so that those that the server keeps waiting are the cheap ones.
        """
        depths = [(2 * place + 1) * self.output // (2 * count) for place in range(count)]
        return [
            (self.prompt + (depth if self.budget is None else 0), self.output - depth)
            for depth in reversed(depths)
        ]


def requests(work: Work, prompts: Prompts, pilot: int, count: int) -> Iterator[Request]:
    """First a request that runs so many tokens longer, then so many at staggered depths.

    New ones follow without end. The staggered ones are the same in every run of requests: what an
    earlier run left of them in the radix cache need not be prefilled again.
    """
    yield Request(prompts.fresh(work.prompt), pilot + work.output)
    for index, (prompt, output) in enumerate(work.staggered(count)):
        yield Request(prompts.text(index, prompt), output)
    while True:
        yield Request(prompts.fresh(work.prompt), work.output)
