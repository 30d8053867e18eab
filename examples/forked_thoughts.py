"""Several sampled thoughts over one prompt, a short answer after each, then a vote.

The prompt is a program for the bundled reasoner and is prefilled once: the forks share its KV
cache. Each thought runs with ``raas`` and keeps a budget of its own tokens. The answer after it
runs ``dense``: it prefills the finished thought, so it reads all of it, evicted tokens included.

    PYTHONPATH=. python examples/forked_thoughts.py --base-url http://127.0.0.1:30000
    PYTHONPATH=. python examples/forked_thoughts.py \
        --model-path reasoner/model --thoughts 5 --kv-budget 256 --lines 40

Without a GPU the bundled model needs ``SGLANG_EXTERNAL_MODEL_PACKAGE=reasoner_model`` and
``reasoner/served`` on the ``PYTHONPATH`` as well.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sglang as sgl
from sglang.srt.utils import kill_itself_when_parent_died

from raas_sglang import lang as raas
from reasoner.problem import ANSWER_TOKENS, make_problem

TEMPERATURE = 0.7
REPORT = ("logical_tokens", "resident_tokens", "evicted_tokens")


@sgl.function
def solve(s: Any, prompt: str, thoughts: int, budget: int, max_thought: int) -> list[Any]:
    """Returns the forks; each has the variables ``thought`` and ``answer``."""
    s += prompt
    forks = s.fork(thoughts)
    for fork in forks:
        thought = raas.gen(
            "thought",
            max_tokens=max_thought,
            stop=" answer",
            temperature=TEMPERATURE,
            kv_policy="raas",
            kv_budget=budget,
        )
        answer = raas.gen("answer", max_tokens=2, temperature=0, kv_policy="dense")
        fork += thought + " answer" + answer  # it ends in `answer <name> <digit>`
    forks.join()  # waits, and ends the threads of the forks
    return list(forks)


def read(fork: Any) -> str:
    """Prints the report of a finished fork's thought and returns the digit that it answered.

    Raises:
        RuntimeError: the server refused a call, for instance its budget.
    """
    error = fork.error()
    if error is not None:
        raise error
    report = fork.get_meta_info("thought")
    counts = ", ".join(f"{report[name]} {name.replace('_', ' ')}" for name in REPORT)
    answer = (fork["answer"].split() or ["nothing"])[-1]
    print(f"{report['kv_policy']} {report['kv_budget']}: {counts}; answer {answer}")
    return answer


@contextmanager
def backend(args: argparse.Namespace) -> Iterator[Any]:
    """Yields the server of ``--base-url``, or one of this program's own."""
    if args.base_url:
        yield sgl.RuntimeEndpoint(args.base_url)
        return
    settings = {"model_path": args.model_path, "kv_policy": "raas", "kv_budget": args.kv_budget}
    if args.device == "cpu":
        # An idle scheduler would spin on a core that the others need, and the KV cache would take
        # most of the host's memory.
        settings |= {"device": "cpu", "attention_backend": "torch_native"}
        settings |= {"sleep_on_idle": True, "max_total_tokens": 60000}
    runtime = sgl.Runtime(**settings)
    try:
        yield runtime
    finally:
        runtime.shutdown()


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--base-url", help="A running server that serves the reasoner.")
    where.add_argument("--model-path", help="The reasoner; starts a server for this program.")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--thoughts", type=int, default=5, help="How many thoughts vote.")
    parser.add_argument("--kv-budget", type=int, default=256, help="Tokens that a thought keeps.")
    parser.add_argument("--lines", type=int, default=40, help="Lines of the reasoner's program.")
    return parser.parse_args()


def main() -> None:
    """Asks, prints what each thought kept, and compares the vote with the right answer."""
    args = parse_args()
    problem = make_problem("milestone", args.lines, program_seed=1, input_seed=1)
    max_thought = problem.generated_tokens - ANSWER_TOKENS + 1  # up to the word "answer"
    with backend(args) as server:
        state = solve.run(
            problem.prompt, args.thoughts, args.kv_budget, max_thought, backend=server
        )
        answers = [read(fork) for fork in state.ret_value]
    winner, votes = Counter(answers).most_common(1)[0]
    print(f"vote: {winner} ({votes} of {len(answers)}), right answer: {problem.answer}")


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":  # in the processes of sgl.Runtime, which import this file
    kill_itself_when_parent_died()
