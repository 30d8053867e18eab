"""Attention that given up tokens would have had: ``python -m accuracy.lost --help``, on the CPU.

    python -m accuracy.lost --tasks milestone:602 uniform:602 --budgets 1/8 1/4 512 --n 8 \
        --methods offline:rule=decay offline:rule=window --out results/attention_lost.jsonl

A dense run writes the chain of a problem. Beside it each policy keeps its books as if it had the
cache: it sees the attention that would be left to it, gives pages up and changes nothing. What the
dense run attends of tokens that a policy has given up is lost to that policy.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizer

from accuracy.decoder import Decoder
from accuracy.grid import Cell, add_grid_flags, cells_of
from accuracy.retention import Retention, Rule
from reasoner.tokenizer import MODEL_DIR
from rows import RowFile

RESULT = "attention lost"
TENTH, HALF = 0.1, 0.5


class Books:
    """What one policy would keep of a dense run, and what it loses; rows are chains.

    Attributes:
        retention: The policy's own state, of the same rows.
        mass: [layers, rows, KV heads, queries of each] probability on tokens that were given up,
            summed up over steps.
        over_tenth: As ``mass``: steps in which it was above a tenth.
        over_half: As ``mass``: steps in which it was above a half.
    """

    def __init__(self, retention: Retention, group: int) -> None:
        self.retention = retention
        shape = (*retention.resident.shape[:3], group)
        self.mass, self.over_tenth, self.over_half = torch.zeros(3, *shape)

    def observe(self, layer: int, q: Tensor, probabilities: Tensor, step: Tensor) -> None:
        """Notes a step of the dense run, with arguments as those of `Retention.observe`."""
        first = self.retention.prompt_len
        seen = self.retention.visible(layer, q, probabilities, step)
        given_up = ~seen[:, :, None, : probabilities.shape[-1] - first]
        lost = (probabilities[..., first:] * given_up).sum(-1)
        self.mass[layer] += lost
        self.over_tenth[layer] += lost > TENTH
        self.over_half[layer] += lost > HALF
        left = probabilities.clone()
        left[..., first:].masked_fill_(given_up, 0.0)
        left /= left.sum(-1, keepdim=True)
        self.retention.observe(layer, q, left, step)


class Bystanders:
    """Books of several policies in the place of a decoder's `Retention`, which then is dense.

    Attributes:
        rule: Of the decoder: pages of one token, so that all policies hear of each step.
        books: One for each policy.
    """

    rule = Rule("window", page=1)

    def __init__(self, books: Sequence[Books], steps: int) -> None:
        self.books, self.steps = books, steps

    def begin_page(self, step: Tensor) -> None:
        for book in self.books:
            if step % book.retention.rule.page == 0:
                book.retention.begin_page(step)

    def add_key(self, layer: int, k: Tensor, step: Tensor) -> None:
        for book in self.books:
            book.retention.add_key(layer, k, step)

    def visible(self, layer: int, q: Tensor, logits: Tensor, step: Tensor) -> Tensor:
        """All generated tokens: bool [1, 1, steps]."""
        return torch.ones(1, 1, self.steps, dtype=torch.bool)

    def observe(self, layer: int, q: Tensor, probabilities: Tensor, step: Tensor) -> None:
        for book in self.books:
            book.observe(layer, q, probabilities, step)


@torch.inference_mode()
def attention_lost(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizer, cells: Sequence[Cell]
) -> list[Books]:
    """Runs the chains of one task and number of problems; returns the books of each cell.

    Raises:
        RuntimeError: the dense run got a chain wrong.
    """
    task, chains = cells[0].task, range(cells[0].n)
    config, steps = model.config, task.output_tokens
    prompts = torch.tensor(tokenizer([task.prompt(index) for index in chains]).input_ids)
    everything = torch.full((len(chains),), steps)
    decoder = Decoder(model, prompts, Bystanders.rule, everything, steps)
    shape = (config.num_hidden_layers, config.num_key_value_heads, config.head_dim)
    group = config.num_attention_heads // config.num_key_value_heads
    books = []
    for cell in cells:
        budgets = torch.full((len(chains),), cell.budget)
        rule = Rule.of(cell.method)
        books.append(Books(Retention(rule, budgets, shape, prompts.shape[1], steps), group))
    decoder.retention = Bystanders(books, steps)
    texts = tokenizer.batch_decode(decoder.run(), skip_special_tokens=True)
    wrong = [index for index in chains if not task.verdict(index, texts[index]).right]
    if wrong:
        raise RuntimeError(f"the dense run must get every chain right, got {wrong} of {task} wrong")
    return books


def main() -> None:
    args = parse_args()
    command = ["-m", "accuracy.lost", *sys.argv[1:]]
    rows = RowFile(args.out, args.first_seed, args.commit, command)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells_of(args):
        groups.setdefault((cell.task.name, cell.n), []).append(cell)
    for cells in groups.values():
        for cell, book in zip(cells, attention_lost(model, tokenizer, cells), strict=True):
            write(rows, cell, book)


def write(rows: RowFile, cell: Cell, book: Books) -> None:
    """Stores one cell: the mean of each chain, and the mean of each layer and query head."""
    task, method, budget = cell.key
    steps = cell.task.output_tokens - 1

    def by_head(total: Tensor) -> list[list[float]]:
        return [
            [round(x, 5) for x in layer] for layer in (total.mean(1) / steps).flatten(1).tolist()
        ]

    of_chains = (book.mass.mean((0, 2, 3)) / steps).tolist()
    row = rows.write(
        RESULT,
        [round(x, 5) for x in of_chains],
        "share of attention",
        {"task": task, "method": method, "budget": budget, "dtype": "float32"},
        steps=steps,
        mass=by_head(book.mass),
        over_tenth=by_head(book.over_tenth),
        over_half=by_head(book.over_half),
    )
    print(f"{task} {method} {budget}: {row['value']:.2%}", flush=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_grid_flags(parser, methods=["offline:rule=top-r,score=bound", "offline:rule=decay"])
    parser.add_argument("--commit", help="commit that is measured, where git is not at hand")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines to append to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
