"""Measures the reasoner on held-out problems: ``python -m reasoner.evaluate`` from ``benchmarks/``.

Decodes greedily with a dense key-value cache and grades the text, and appends one JSON line per
regime and length. Both regimes of a length decode in one batch, as their prompts are equally long.
"""

import argparse
import json
import math
import shlex
import sys
import time
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, StaticCache

from accuracy.significance import wilson
from reasoner.problem import (
    CHAIN_LINE_TOKENS,
    REGIMES,
    Grade,
    Problem,
    grade,
    lines_for_tokens,
    make_problem,
)
from reasoner.tokenizer import MODEL_DIR

RESULTS = Path(__file__).parents[1] / "results" / "reasoner.jsonl"
# Which of a chain line's words each kind of error is counted under.
_KINDS = ["name", "syntax", "copy", "copy", "copy", "syntax", "lookup", "syntax", "lookup"]
_KINDS += ["syntax", "name", "result", "syntax"]


class Decoder:
    """Greedy decoding with a static dense cache, one step replayed as a CUDA graph.

    Args:
        model: The model, in its serving precision.
        prompts: int64 ``[rows, prompt]``, all of one length.
        new_tokens: Most tokens to generate.
    """

    def __init__(self, model: PreTrainedModel, prompts: Tensor, new_tokens: int) -> None:
        self.model, self.new_tokens = model, new_tokens
        rows, length = prompts.shape
        size = math.ceil((length + new_tokens) / 64) * 64
        self.cache = StaticCache(config=model.config, max_cache_len=size)
        self.places = torch.arange(size, device=prompts.device)
        self.position = torch.tensor([length], device=prompts.device)
        self.index = torch.zeros(1, dtype=torch.long, device=prompts.device)
        self.output = torch.zeros(rows, new_tokens, dtype=torch.long, device=prompts.device)
        mask = self.places[None, None, None] <= self.places[None, None, :length, None]
        states = model.model(
            prompts, past_key_values=self.cache, attention_mask=mask, use_cache=True
        )
        self.token = model.lm_head(states.last_hidden_state[:, -1:]).argmax(-1)
        self.output[:, :1] = self.token

    def step(self) -> None:
        """Feeds the last token of every row and picks the next; changes tensors in place only."""
        logits = self.model(
            self.token,
            past_key_values=self.cache,
            attention_mask=(self.places <= self.position)[None, None, None],
            position_ids=self.position[None],
            use_cache=True,
        ).logits
        self.position.add_(1)
        self.index.add_(1)
        self.token.copy_(logits.argmax(-1))
        self.output.index_copy_(1, self.index, self.token)

    def run(self) -> Tensor:
        """Returns int64 ``[rows, generated]``; what follows a row's end is padding."""
        config = self.model.config
        step, done = self.step, 1
        if self.token.is_cuda:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # a capture needs these steps to have run before it
                for _ in range(3):
                    self.step()
                    done += 1
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.step()
            step = graph.replay
        while done < self.new_tokens:
            step()
            done += 1
            if done % 64 == 0 and (self.output == config.eos_token_id).any(1).all():
                break
        ended = (self.output == config.eos_token_id).cumsum(1)
        after = ended - (self.output == config.eos_token_id).long() > 0
        return self.output.masked_fill(after, config.pad_token_id)[:, :done]


@torch.inference_mode()
def forced_right(model: PreTrainedModel, prompts: Tensor, chains: Tensor) -> Tensor:
    """Tells which chains the model would write greedily, in one pass over each right chain.

    Args:
        model: The model.
        prompts: int64 ``[rows, prompt]``.
        chains: int64 ``[rows, chain]``, ending in the end of sequence.

    Returns:
        bool ``[rows]``; true where the most likely token is the right one at every position.
    """
    right = []
    for row in torch.cat([prompts, chains], dim=1).split(8):
        kept = chains.shape[1] + 1
        logits = model(row, use_cache=False, logits_to_keep=kept).logits
        right.append((logits[:, :-1].argmax(-1) == row[:, prompts.shape[1] :]).all(1))
    return torch.cat(right)


def error_kind(problem: Problem, text: str) -> str | None:
    """Names what the first wrong word was, or None for a right chain."""
    got, want = text.split(), problem.chain.split()
    for index, word in enumerate(want):
        if index >= len(got) or got[index] != word:
            in_line = index < CHAIN_LINE_TOKENS * problem.num_lines
            return _KINDS[index % CHAIN_LINE_TOKENS] if in_line else "answer"
    return None if len(got) == len(want) else "end"


def summary(problems: list[Problem], texts: list[str], generated: list[int]) -> dict:
    """Returns the counts of one regime and length, ready for JSON."""
    grades: list[Grade] = [grade(p, t) for p, t in zip(problems, texts, strict=True)]
    chains, answers = sum(g.chain_right for g in grades), sum(g.answer_right for g in grades)
    kinds = [error_kind(p, t) for p, t in zip(problems, texts, strict=True)]
    return {
        "regime": problems[0].regime,
        "num_lines": problems[0].num_lines,
        "n": len(problems),
        "chain_right": chains,
        "chain_right_share": chains / len(problems),
        "chain_right_wilson95": [round(x, 4) for x in wilson(chains, len(problems))],
        "answer_right": answers,
        "answer_right_share": answers / len(problems),
        "answer_right_wilson95": [round(x, 4) for x in wilson(answers, len(problems))],
        "generated_tokens_mean": sum(generated) / len(generated),
        "first_wrong_lines": [g.first_wrong_line for g in grades if not g.chain_right],
        "first_error_kinds": {k: kinds.count(k) for k in sorted(set(kinds) - {None})},
        "program_seeds": [problems[0].program_seed, problems[-1].program_seed],
        "input_seeds": [problems[0].input_seed, problems[-1].input_seed],
    }


@torch.inference_mode()
def evaluate(args: argparse.Namespace, num_lines: int) -> list[dict]:
    """Measures both regimes at one length and returns a row for each."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=getattr(torch, args.dtype), attn_implementation="sdpa"
    )
    model = model.to(args.device).eval()

    def encode(texts: list[str]) -> Tensor:
        return torch.tensor(tokenizer(texts).input_ids, device=args.device)

    forced, decoded = [], []
    for regime in REGIMES:
        seeds = range(args.first_seed, args.first_seed + max(args.n, args.forced))
        problems = [make_problem(regime, num_lines, s, s) for s in seeds]
        decoded += problems[: args.n]
        problems = problems[: args.forced]
        if problems:
            chains = encode([f" {p.chain}{tokenizer.eos_token}" for p in problems])
            forced.append(forced_right(model, encode([p.prompt for p in problems]), chains))
            print(f"{regime} {num_lines} lines: {forced[-1].sum()} of {len(problems)}", flush=True)
    if not args.n:
        return []
    begin = time.time()
    prompts = encode([p.prompt for p in decoded])
    output = Decoder(model, prompts, decoded[0].generated_tokens + CHAIN_LINE_TOKENS).run()
    texts = tokenizer.batch_decode(output, skip_special_tokens=True)
    generated = (output != tokenizer.pad_token_id).sum(1).tolist()
    rows = []
    for i in range(len(REGIMES)):
        part = slice(i * args.n, (i + 1) * args.n)
        row = summary(decoded[part], texts[part], generated[part])
        row["decode_seconds_both_regimes"] = round(time.time() - begin, 1)
        if forced:
            row["forced_n"] = args.forced
            row["forced_chain_right"] = int(forced[i].sum())
        rows.append(row)
    return rows


def environment(args: argparse.Namespace) -> dict:
    """Returns what a reader needs to repeat the measurement."""
    cuda = args.device.startswith("cuda")
    return {
        "kv_cache": "dense",
        "decoding": "greedy",
        "dtype": args.dtype,
        "command": shlex.join(["python", "-m", "reasoner.evaluate", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main() -> None:
    """Evaluates every length of the command line and appends the rows to the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON lines to append to")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1200, 3000])
    parser.add_argument("--n", type=int, default=200, help="problems per regime and length")
    parser.add_argument("--forced", type=int, default=200, help="problems for the forced pass")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for tokens in args.tokens:
        for row in evaluate(args, lines_for_tokens(tokens)):
            line = json.dumps({**row, **environment(args)})
            print(line, flush=True)
            with args.out.open("a") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
