"""Decode batches of requests at random depths, with state and cache as they would be."""

import torch

from raas_kernels import (
    DecodeBatch,
    EvictionBuffers,
    Policy,
    RequestTables,
    ScoreScratch,
    StepBuffers,
    StepOptions,
)
from raas_kernels.layout import BUDGET_UNIT, LONG_PERIOD

SMALL = {"rows": 9, "heads": 2, "group": 2, "dim": 64, "units": 3, "dtype": torch.float32}
POLICIES = (
    *(Policy.RAAS, Policy.DENSE, Policy.H2O, Policy.RAAS),
    *(Policy.RANDOM, Policy.RAAS_PAPER, Policy.WINDOW, Policy.RAAS),
)
OPTIONS = StepOptions(2, layer_offset=5, scaling=1 / 16)


class Rows:
    """Requests at random depths of random budgets, in a batch whose rows follow no slot order."""

    def __init__(self, *, rows, heads, group, dim, units, dtype, **rest):
        self.generator = torch.Generator().manual_seed(rest.get("seed", 0))
        self.dtype, self.dim, self.tokens = dtype, dim, units * BUDGET_UNIT
        self.kv_dtype, self.scales = rest.get("kv_dtype", dtype), rest.get("scales", ())
        self.layers, self.heads, self.group = rest.get("layers", 2), heads, group
        self.programs = rest.get("programs", 5)
        self.slots = 1 + torch.randperm(rows, generator=self.generator)
        self.prompt = torch.randint(1, 40, (rows,), generator=self.generator)
        budgets = torch.randint(1, units + 1, (rows,), generator=self.generator)
        budgets[:1] = units
        self.budgets = budgets * BUDGET_UNIT
        kinds = [POLICIES[i % len(POLICIES)] for i in range(rows)]
        self.policies = torch.tensor([int(kind) for kind in kinds])
        self.periods = torch.tensor(
            [kind.period(int(budget)) for kind, budget in zip(kinds, self.budgets, strict=True)]
        )
        # Enough depth for all to saturate, and one request that begins with its first token.
        depths = torch.rand(rows, generator=self.generator) * 3 * self.budgets
        self.step = depths.long()
        self.step[-1:] = 0
        # Some were retracted lately.
        self.first_steps = (self.step - self.integers((rows,), 0, 30)).clamp(min=0)
        self.padded = rest.get("padded", 0)
        width = 40 + self.tokens
        self.total = 1 + rows * width
        order = 1 + torch.randperm(rows * width, generator=self.generator)
        self.kv_slots = order.view(rows, width)

    def fresh(self):
        """State as after a random past: keys, values, eviction and step buffers, and scratch."""
        rows, query_heads = len(self.slots), self.heads * self.group
        sizes = {
            **{"Y": self.layers, "R": rows + 1, "M": rows + self.padded + 3, "H": self.heads},
            **{"Hq": query_heads, "D": self.dim, "N": self.tokens, "V": LONG_PERIOD},
            **{"G": self.programs, "C": 1 << (self.group - 1).bit_length()},
        }
        shape = (self.layers, rows + 1, self.heads, self.tokens)
        moments = (self.layers, rows + 1, query_heads, self.dim)
        ages = torch.rand(shape, generator=self.generator).argsort(-1).int()
        steps = torch.zeros(rows + 1, dtype=torch.int32)
        steps[self.slots] = self.step.int()
        births = steps[:, None, None] - 1 - ages
        victims = torch.zeros((*shape[:3], LONG_PERIOD), dtype=torch.int32)
        tables = (self.slots, self.policies, self.budgets)
        for slot, policy, budget in zip(*(table.tolist() for table in tables), strict=True):
            unit = 16 if policy == Policy.RAAS_PAPER else 1
            drawn = torch.rand((*shape[:1], *shape[2:3], budget // unit), generator=self.generator)
            places = drawn.argsort(-1)[..., :LONG_PERIOD].int()
            victims[:, slot, :, : places.shape[2]] = places
        buffers = EvictionBuffers(
            births=births,
            weights=self.integers(shape, 0, 999).float(),
            value_norms=self.integers(shape, 1, 99).float(),
            victims=victims,
            query_means=self.small(moments).float(),
            query_variances=self.integers(moments, 0, 9).float(),
            key_means=self.small((*shape[:3], self.dim)).float(),
            key_variances=self.integers((*shape[:3], self.dim), 0, 9).float(),
        )
        # What was noted of the request that had the row before may not be looked at.
        begin = self.slots[self.step == self.first_steps]
        of_keys = buffers.key_means, buffers.key_variances
        for moment in (buffers.query_means, buffers.query_variances, *of_keys):
            moment[:, begin] = float("nan")
        step_buffers = poisoned(StepBuffers.zeros(sizes, "cpu", self.dtype))
        scratch = poisoned(ScoreScratch.zeros(sizes, "cpu", self.dtype))
        keys = self.small((self.layers, self.total, self.heads, self.dim)).to(self.kv_dtype)
        values = torch.full_like(keys, float("nan"))
        rows = zip(self.kv_slots, self.prompt, self.step, self.policies, strict=True)
        for slots, prompt, step, policy in rows:
            # Neither what is yet to come may be looked at, nor, but by h2o, the prompt.
            if policy != Policy.H2O:
                keys[:, slots[:prompt]] = float("nan")
            keys[:, slots[prompt + step :]] = float("nan")
        return keys, values, buffers, step_buffers, scratch

    def integers(self, shape, low, high):
        return torch.randint(low, high, shape, generator=self.generator)

    def small(self, shape):
        return self.integers(shape, -3, 4).to(self.dtype)

    def qkv(self):
        """One projection's output for each layer: query, key and value heads in one tensor."""
        shape = (len(self.slots) + self.padded, (self.group + 2) * self.heads, self.dim)
        return [self.small(shape) for _ in range(self.layers)]

    def batch(self):
        held = self.prompt + torch.minimum(self.step + 1, self.budgets)
        dense = self.policies == Policy.DENSE
        locations = self.kv_slots.gather(1, held[:, None] - 1)[:, 0]
        locations = torch.where(dense | (self.step < self.budgets), locations, 0)
        # FlashInfer's table of the same size at every step, so that a graph can be replayed.
        indptr = torch.arange(len(self.slots) + self.padded + 1) * self.kv_slots.shape[1]

        def padded(column):
            """Padded rows of a CUDA graph point to request row 0 and KV slot 0, with length 1."""
            return torch.cat([column, torch.zeros(self.padded).long()])

        return DecodeBatch(
            req_pool_indices=padded(self.slots),
            positions=padded(self.prompt + self.step),
            out_cache_loc=padded(locations),
            kv_indptr=indptr.int(),
            kv_indices=self.kv_slots.flatten().int(),
            requests=RequestTables(
                policies=padded(self.policies).int(),
                prompt_lens=padded(self.prompt).int(),
                budgets=padded(self.budgets).int(),
                periods=padded(self.periods).int(),
                first_steps=padded(self.first_steps).int(),
                capacities=padded(self.prompt + self.budgets).int(),
            ),
        )


def poisoned(record):
    """Fills a record so that whatever is read before it was written shows."""
    for value in record.tensors().values():
        value.fill_(float("nan") if value.is_floating_point() else -77)
    return record
