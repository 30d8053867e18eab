"""Answers under any rule, on any model: `python -m benchmarks.accuracy.study.run --help`.

    python -m benchmarks.accuracy.study.run --model-path MODEL --tasks gsm8k:FILE gsm8k*4:FILE \
        --methods dense window raas raas:spread=4,linear=0 --budgets 64 128 \
        --n 1000 --out out/study.jsonl

A method is a rule of `rules.py` and its settings. Answers are greedy. Samples are those of the
served runs: `benchmarks.accuracy.summary` makes rows of them, which tell rules apart on the same
problems.
"""

import argparse
import sys
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.accuracy.grid import Cell, add_grid_flags, cells_of
from benchmarks.accuracy.samples import SampleFile, about_run, add_sample_flags
from benchmarks.accuracy.study.decoder import Decoder, prefill
from benchmarks.accuracy.study.grade import Answer, graded
from benchmarks.accuracy.study.model import Model, add_device_flags, asked_model
from benchmarks.accuracy.study.prompts import token_ids
from benchmarks.accuracy.study.rules import make_rule
from reasoner import REASONER

TOKENS = 1024  # most of an answer to a question of a data set, where --max-tokens says nothing


def main() -> int:
    args = parse_args()
    cells = cells_of(args)
    file = SampleFile(args.out, args.texts, {**about_run(args), "dtype": args.dtype})
    model = asked_model(args)
    study = Study(model, AutoTokenizer.from_pretrained(args.model_path))
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for cell in cells:
            study.collect(cell, file, pool)
    file.close()
    return 0


class Study:
    """A model, and the buffers of its last cell, which the next rule on the same prompts reuses.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: Model, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._decoder: tuple[tuple[object, ...], Decoder] | None = None

    def collect(self, cell: Cell, file: SampleFile, pool: Executor) -> None:
        """Decodes and grades what of a cell is not in a file yet, and says what came out."""
        missing = file.missing(cell.key, range(cell.n))
        if not missing:
            return
        began = time.monotonic()
        answers = self.answers(cell, missing)
        took = time.monotonic() - began
        samples = graded(pool, cell, answers)
        for sample in samples:
            file.write(sample)
        rights = [right for one in samples for right in one["rights"] or [one["right"]]]
        tokens = sum(answer.tokens for answer in answers) / len(answers)
        task, method, budget = cell.key
        print(
            f"{task} {method} L = {budget or '-'}: {100 * sum(rights) / len(rights):.1f} % of "
            f"{len(rights)}, {tokens:.0f} tokens, {took:.1f} s",
            flush=True,
        )

    def answers(self, cell: Cell, indices: list[int]) -> list[Answer]:
        """Decodes the problems of these indices.

        Raises:
            ValueError: a prompt and its answer would not fit the model's context.
        """
        steps = cell.task.sampling.get("max_completion_tokens", TOKENS)
        rule = make_rule("window" if cell.method == "dense" else cell.method)
        budget = steps if cell.budget is None else cell.budget
        decoder = self._decoder_of((cell.task.name, *indices), cell, indices, budget, steps)
        outputs = decoder.run(rule)
        texts = self.tokenizer.batch_decode(outputs, skip_special_tokens=True)
        lengths = decoder.prompts.length.tolist()
        answers = []
        for index, output, text, length in zip(indices, outputs, texts, lengths, strict=True):
            stored = len(output) - 1  # the last token was never fed
            finish = "stop" if output[-1] in self.model.ends else "length"
            resident = length + min(stored, budget)
            answers.append(Answer(index, text, len(output), finish, length + stored, resident))
        return answers

    def _decoder_of(
        self, asked: tuple[object, ...], cell: Cell, indices: list[int], budget: int, steps: int
    ) -> Decoder:
        wanted = (*asked, budget, steps)
        if self._decoder is None or self._decoder[0] != wanted:
            self._decoder = None  # before the next one takes its memory
            ids = token_ids(self.tokenizer, cell.task, indices)
            longest = max(map(len, ids))
            if longest + steps > self.model.context:
                raise ValueError(
                    f"a prompt and its answer must fit the model's context of {self.model.context} "
                    f"tokens, got {longest} and up to {steps}; use a smaller --max-tokens"
                )
            self._decoder = wanted, Decoder(self.model, prefill(self.model, ids), budget, steps)
        return self._decoder[1]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", type=Path, default=REASONER, help="the reasoner by default")
    add_grid_flags(parser, methods=["dense", "window", "raas"])
    add_device_flags(parser)
    add_sample_flags(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
