"""Greedy decoding of all answers at once, under a rule."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.accuracy.study.attention import LARGEST_GROUP, Prompts, Statistics, attend
from benchmarks.accuracy.study.model import Model
from benchmarks.accuracy.study.residents import Residents
from benchmarks.accuracy.study.rule import Rule

PREFILL_TOKENS = 16384
LOOK_EVERY = 16  # steps between two looks at which answers have ended
# Rows are computed in batches of these shares of all, each a CUDA graph of its own.
SHARES = (1.0, 0.85, 0.7, 0.55, 0.42, 0.3, 0.2, 0.12, 0.06)


class Decoder:
    """Buffers and CUDA graphs of one model, one set of prompts and one budget.

    Args:
        model: The model.
        prompts: Of `prefill`.
        budget: L in tokens.
        steps: Most tokens to generate.

    Raises:
        ValueError: the kernels cannot take the model's shape.
    """

    def __init__(self, model: Model, prompts: Prompts, budget: int, steps: int) -> None:
        group, size = model.query_heads // model.heads, model.size
        is_cuda = model.device.type == "cuda"
        if is_cuda and (group > LARGEST_GROUP or size < 16 or size & (size - 1)):
            raise ValueError(
                f"on a GPU a KV head must have at most {LARGEST_GROUP} query heads and a size that "
                f"is a power of two from 16 on, got {group} and {size}; use --device cpu"
            )
        self.model, self.prompts, self.steps = model, prompts, steps
        self.residents = Residents(model, prompts, budget)
        rows = len(prompts.start)
        self.is_cuda = is_cuda
        self.token, self.answer = (torch.zeros_like(prompts.start) for _ in range(2))
        self.has_ended = torch.zeros(rows, dtype=torch.bool, device=model.device)
        self.step = torch.zeros(1, dtype=torch.long, device=model.device)
        self.output = torch.zeros(rows, steps, dtype=torch.long, device=model.device)
        self.ends = torch.tensor(model.ends, dtype=torch.long, device=model.device)
        self.batches = sorted({min(rows, -(-int(rows * x) // 8) * 8) or rows for x in SHARES})
        self._graphs: dict[tuple[int, bool], torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle() if is_cuda else None

    def run(self, rule: Rule) -> list[list[int]]:
        """Returns the tokens of each answer; its end, where there is one, is its last."""
        self.decode(rule)
        ends = set(self.model.ends)
        return [_until(row, ends) for row in self.output.tolist()]

    @torch.inference_mode()
    def decode(self, rule: Rule) -> None:
        """Fills `output`, row by row of the prompts."""
        residents, rows = self.residents, len(self.answer)
        residents.reset()
        if rule.statistics:
            residents.want_statistics()
        rule.begin(residents)
        torch.arange(rows, out=self.answer)
        self.output.fill_(-1)
        self.output[:, 0] = self.prompts.first
        self.step.fill_(-1)
        self.token.copy_(self._first())
        self.has_ended.copy_(self._is_end(self.token))
        for step in range(self.steps - 1):
            self.step.fill_(step)
            rule.place(step, residents)
            self._run_step(rule.statistics)
            rule.observe(step, residents)
            if step % LOOK_EVERY == LOOK_EVERY - 1 and not self._drop_ended():
                break

    def _drop_ended(self) -> int:
        """Moves the rows that go on to the front; returns how many there are."""
        residents = self.residents
        ended = self.has_ended[: residents.rows]
        left = residents.rows - int(ended.sum())
        batch = next(size for size in self.batches if size >= left)
        if left and batch < residents.rows:
            index = ended.int().argsort(stable=True)[:batch]
            for x in (self.token, self.answer, self.has_ended):
                x[:batch] = x[index]
            residents.keep(index)
        return left

    def _run_step(self, with_statistics: bool) -> None:
        key = self.residents.rows, with_statistics
        if not self.is_cuda:
            return self._one_step(with_statistics)
        if key not in self._graphs:
            kept = [x.clone() for x in (self.token, self.has_ended)]
            self._one_step(with_statistics)  # compiles, which a capture must not
            for x, old in zip((self.token, self.has_ended), kept, strict=True):
                x.copy_(old)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                self._one_step(with_statistics)
            self._graphs[key] = graph
        self._graphs[key].replay()

    def _one_step(self, with_statistics: bool) -> None:
        """Feeds each row's last token and picks the next; changes tensors in place only."""
        model, residents, rows = self.model, self.residents, self.residents.rows
        token, ended, where = self.token[:rows], self.has_ended[:rows], residents.where()
        hidden = model.embed(token)
        turns = model.turns(where[1] + self.step)
        parts = residents.statistics if with_statistics else None
        for i, layer in enumerate(model.layers):
            q, k, v = model.project(layer, hidden, turns)
            slots = residents.keys[i, :rows], residents.values[i, :rows]
            slot = residents.slot[i, :rows, :, None]
            for x, new in zip(slots, (k, v), strict=True):
                x.scatter_(2, slot[..., None].expand(*slot.shape, model.size), new[:, :, None])
            residents.norms[i, :rows].scatter_(2, slot, v.float().norm(dim=-1, keepdim=True))
            residents.queries[i, :rows] = q.unflatten(1, (model.heads, -1))
            mixed = attend(
                residents.queries[i, :rows],
                slots,
                (self.prompts.keys[i], self.prompts.values[i]),
                where,
                self.step,
                model.scale,
                parts and Statistics(*(x[i, :rows] for x in vars(parts).values())),
            )
            hidden = model.finish(layer, hidden, mixed.flatten(1, 2))
        at = self.answer[:rows] * self.steps + self.step + 1
        token.copy_(self._next(hidden, at))
        ended |= self._is_end(token)

    def _first(self) -> Tensor:
        """Returns the token of each row that is fed first."""
        return self.prompts.first

    def _next(self, hidden: Tensor, at: Tensor) -> Tensor:
        """Picks the token of each row that is fed next.

        Args:
            hidden: Of the last layer, [rows, hidden size].
            at: int64 [rows], where in the flat `output` the model's choice belongs.
        """
        tokens = self.model.next_tokens(hidden)
        self.output.view(-1).scatter_(0, at, tokens)
        return tokens

    def _is_end(self, tokens: Tensor) -> Tensor:
        """Tells which rows end with these tokens."""
        return (tokens[:, None] == self.ends).any(-1)


@torch.inference_mode()
def prefill(model: Model, ids: Sequence[Sequence[int]]) -> Prompts:
    """Runs all prompts, those of about the same length together."""
    lengths = torch.tensor([len(x) for x in ids], device=model.device)
    start = lengths.cumsum(0) - lengths
    shape = (len(model.layers), model.heads, int(lengths.sum()), model.size)
    keys, values = (torch.zeros(shape, dtype=model.dtype, device=model.device) for _ in "kv")
    first = torch.zeros_like(lengths)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)
    while order:
        longest = len(ids[order[0]])
        rows, order = order[: PREFILL_TOKENS // longest + 1], order[PREFILL_TOKENS // longest + 1 :]
        padded = [[*ids[i], *[0] * (longest - len(ids[i]))] for i in rows]
        places = torch.arange(longest, device=model.device)
        is_token = places < lengths[rows][:, None]
        target = (start[rows][:, None] + places)[is_token]
        hidden = model.embed(torch.tensor(padded, device=model.device))
        turns = model.turns(places)
        for i, layer in enumerate(model.layers):
            q, k, v = model.project(layer, hidden, turns)
            keys[i][:, target] = k[is_token].transpose(0, 1)
            values[i][:, target] = v[is_token].transpose(0, 1)
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            mixed = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            hidden = model.finish(layer, hidden, mixed.transpose(1, 2))
        last = hidden[torch.arange(len(rows), device=model.device), lengths[rows] - 1]
        first[rows] = model.next_tokens(last)
    return Prompts(keys, values, start, lengths, first)


def _until(tokens: list[int], ends: set[int]) -> list[int]:
    last = next((i for i, token in enumerate(tokens) if token in ends or token < 0), len(tokens))
    return tokens[: last + 1] if last < len(tokens) and tokens[last] >= 0 else tokens[:last]
