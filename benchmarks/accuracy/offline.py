"""Samples of what the engine does not do: ``python -m accuracy.offline --help``, in plain torch.

    python -m accuracy.offline --tasks milestone:1200 --methods offline:rule=select,score=bound \
        offline:rule=decay,page=4,pool=request --budgets 144 304 --out ../out/offline.jsonl

decodes with a cache of all tokens and masks, so it needs O(N) memory whatever the budget. Settings
of a method are the fields of `accuracy.retention.Rule`. The budgets of one method are one batch.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizer

from accuracy.ask import Progress
from accuracy.decoder import Decoder
from accuracy.grid import Cell, add_grid_flags, cells_of
from accuracy.retention import Rule
from accuracy.samples import SampleFile, sample_of
from reasoner.tokenizer import MODEL_DIR
from rows import commit_of_checkout

Job = tuple[Cell, int]


def main() -> int:
    args = parse_args()
    deadline = time.monotonic() + args.seconds
    cells = cells_of(args)
    about = {
        "command": shlex.join(["python", "-m", "accuracy.offline", *sys.argv[1:]]),
        "commit": args.commit or commit_of_checkout(),
        "first_seed": args.first_seed,
        "model": "reasoner",
        "dtype": args.dtype,
    }
    file = SampleFile(args.out, args.texts, about)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=getattr(torch, args.dtype))
    model = model.to(args.device).eval()
    batches = batches_of(cells, file, args.rows)
    progress = Progress(sum(map(len, batches)))
    for batch in batches:
        if time.monotonic() > deadline:
            print(f"{args.seconds} s are used up; {args.out} holds what was collected", flush=True)
            return 3
        for sample, (cell, _) in zip(decode(model, tokenizer, batch), batch, strict=True):
            file.write(sample)
            progress.note(cell, sample["right"])
    file.close()
    return 0


def batches_of(cells: Sequence[Cell], file: SampleFile, rows: int) -> list[list[Job]]:
    """Returns what is not in the file yet; a batch has one task and one method."""
    groups: dict[tuple[str, str], list[Job]] = {}
    for cell in cells:
        missing = [i for i in range(cell.n) if i not in file.done[cell.key]]
        group = groups.setdefault((cell.task.name, cell.method.text), [])
        group += [(cell, index) for index in missing]
    return [
        group[first : first + rows]
        for group in groups.values()
        for first in range(0, len(group), rows)
    ]


@torch.inference_mode()
def decode(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizer, batch: Sequence[Job]
) -> list[dict[str, Any]]:
    """Returns the sample of each job."""
    first = batch[0][0]
    rule = Rule.of(first.method)
    prompts = torch.tensor(
        tokenizer([cell.task.prompt(index) for cell, index in batch]).input_ids,
        device=model.device,
    )
    budgets = torch.tensor([cell.budget for cell, _ in batch], device=model.device)
    limit = first.task.sampling["max_completion_tokens"]
    decoder = Decoder(model, prompts, rule, budgets, limit)
    output = decoder.run()
    texts = tokenizer.batch_decode(output, skip_special_tokens=True)
    lengths = (output != model.config.pad_token_id).sum(1).tolist()
    ended = (output == model.config.eos_token_id).any(1).tolist()
    kept = decoder.retention.resident.sum(-1).float().mean((0, 2)) * rule.page
    samples = []
    for row, (cell, index) in enumerate(batch):
        logical = prompts.shape[1] + lengths[row] - 1
        resident = min(logical, decoder.pinned + round(kept[row].item()))
        report = {
            "logical_tokens": logical,
            "resident_tokens": resident,
            "evicted_tokens": logical - resident,
        }
        finish = "stop" if ended[row] else "length"
        samples.append(sample_of(cell, index, texts[row], lengths[row], finish, report))
    return samples


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    add_grid_flags(parser, methods=["offline:rule=select,score=bound"])
    parser.add_argument("--rows", type=int, default=1000 if cuda else 48, help="of a batch")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if cuda else "float32")
    parser.add_argument("--seconds", type=float, default=1e9, help="stops after so long")
    parser.add_argument("--texts", choices=("all", "wrong", "none"), default="all")
    parser.add_argument("--commit", help="commit that is measured, where git is not at hand")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines to append to")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
