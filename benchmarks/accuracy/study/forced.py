"""What a rule costs on given answers: `python -m benchmarks.accuracy.study.forced --help`.

    python -m benchmarks.accuracy.study.forced --model-path MODEL \
        --texts gsm8k*4:FILE math500:FILE --methods window raas raas:spread=4 --budgets 64 128 \
        --n 64 --out out/forced.jsonl

The model is fed each answer, whoever wrote it. Measured are the tokens that it expects once others
were given up: their negative log-likelihood, and how often its first choice is that with a dense
cache. Every token counts, so a few texts tell rules apart, also on a model that answers nothing
right. Texts come from data sets or from the dense cells of stored samples (`texts.py`).

The file has a line for each text and cell; `loss` (in nats) and `same` are sums over its `tokens`.
If a run stops, the same command continues it. `losses.py` makes rows of it.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.accuracy.samples import Sample, SampleFile, about_run, add_file_flags
from benchmarks.accuracy.study.decoder import prefill
from benchmarks.accuracy.study.losses import summarise, table
from benchmarks.accuracy.study.model import Model, add_device_flags, asked_model
from benchmarks.accuracy.study.prompts import chat_prompt, plain_ids
from benchmarks.accuracy.study.rules import make_rule
from benchmarks.accuracy.study.teacher import Teacher
from benchmarks.accuracy.study.texts import Text, read_texts


def main() -> int:
    args = parse_args()
    methods = ["dense", *(method for method in args.methods if method != "dense")]
    for method in methods[1:]:
        make_rule(method)  # says what is wrong before anything is computed
    model = asked_model(args)
    tokenizer = AutoTokenizer.from_pretrained(args.model_path)
    file = SampleFile(args.out, "all", {**about_run(args), "dtype": args.dtype})
    for source in args.texts:
        name, texts = read_texts(source)
        study = Forced(model, tokenizer, texts, args.n, args.max_tokens, max(args.budgets))
        for budget, method in product(args.budgets, methods):
            missing = file.missing((name, method, budget), study.indices)
            if missing:
                began = time.monotonic()
                for sample in study.samples(name, method, budget):
                    if sample["index"] in missing:
                        file.write(sample)
                print(f"{name} {method} L = {budget}: {time.monotonic() - began:.1f} s", flush=True)
    file.close()
    print("\n".join(table(row for _, row in summarise(args.out))))
    return 0


class Forced:
    """Texts as tokens, and what the dense cache and the last budget need of them.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        texts: Those to choose from.
        n: Texts to take, the first ones that are long enough.
        most: Tokens of an answer; the rest is cut off.
        budget: The largest L. An answer must be longer than that by half.

    Raises:
        ValueError: no answer is long enough, or a text does not fit the model's context.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[Text],
        n: int,
        most: int,
        budget: int,
    ) -> None:
        prompts = plain_ids(tokenizer, [chat_prompt(tokenizer, text.message) for text in texts])
        answers = plain_ids(tokenizer, [text.answer for text in texts])
        least = budget * 3 // 2
        chosen = [i for i, answer in enumerate(answers) if len(answer[:most]) >= least][:n]
        if not chosen:
            raise ValueError(
                f"an answer must have {least} tokens for a budget of {budget}, got at most "
                f"{max(map(len, answers))}, cut to {most}; use smaller budgets"
            )
        self.model = model
        self.indices = [texts[i].index for i in chosen]
        self.answers = [answers[i][:most] for i in chosen]
        longest = max(len(prompts[i]) + len(answers[i][:most]) for i in chosen)
        if longest > model.context:
            raise ValueError(
                f"a prompt and its answer must fit the model's context of {model.context} tokens, "
                f"got {longest}; use a smaller --max-tokens"
            )
        self._prompts = prefill(model, [prompts[i] for i in chosen])
        self._teacher: Teacher | None = None
        self._dense: tuple[torch.Tensor, torch.Tensor] | None = None

    def samples(self, name: str, method: str, budget: int) -> list[Sample]:
        """Returns one sample for each text; dense is measured over the same tokens."""
        loss, choice = self._fed(method, budget) if method != "dense" else self.dense()
        same = choice == self.dense()[1]
        tokens = torch.arange(loss.shape[1], device=loss.device)
        length = torch.tensor([len(answer) for answer in self.answers], device=loss.device)
        counts = (tokens > budget) & (tokens < length[:, None])  # token t is expected in step t - 1
        sums = (x.sum(1).tolist() for x in (counts, loss.double() * counts, same & counts))
        return [
            {
                **{"task": name, "method": method, "budget": budget, "index": index},
                **{"tokens": count, "loss": round(total, 4), "same": alike},
            }
            for index, count, total, alike in zip(self.indices, *sums, strict=True)
        ]

    def dense(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns loss and first choice of each token with a dense cache, both [texts, tokens]."""
        if self._dense is None:
            self._dense = self._fed("window", max(map(len, self.answers)))
        return self._dense

    def _fed(self, method: str, budget: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self._teacher is None or self._teacher.residents.budget != budget:
            self._teacher = None  # before the next one takes its memory
            self._teacher = Teacher(self.model, self._prompts, budget, self.answers)
        self._teacher.decode(make_rule(method))
        return self._teacher.loss.clone(), self._teacher.output.clone()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", type=Path, required=True)
    parser.add_argument("--texts", nargs="+", required=True, help="DATASET:FILE, DATASET*4:FILE")
    parser.add_argument("--methods", nargs="+", default=["window", "raas"])
    parser.add_argument("--budgets", nargs="+", type=int, default=[64, 128], help="tokens")
    parser.add_argument("--n", type=int, default=64, help="texts of each data set")
    parser.add_argument("--max-tokens", type=int, default=1024, help="of an answer")
    add_device_flags(parser)
    add_file_flags(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
