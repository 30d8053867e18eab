"""Pictures of the milestones of one chain: ``python -m accuracy.milestones --help``.

    python -m accuracy.milestones --tasks milestone:602 --budgets 256 \
        --methods raas raas-paper --out ../out/milestones.jsonl
    python -m accuracy.milestones --draw ../docs/plots

The first serves each method, listens to its trace stream and stores the lives of all tokens; the
second draws the stored rows of the repository, one panel for each layer and KV head.
"""

import argparse
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import requests

import stored
from accuracy.ask import generate_body
from accuracy.grid import Cell, add_grid_flags, cells_of
from accuracy.lifetime import Lifetime, as_row, lifetimes, of_row
from accuracy.server import make_server
from local_server import REASONER, LocalServer, free_port
from raas_sglang.trace import TokenTrace, TraceBatch, listen
from rows import RowFile

RESULT = "lives of tokens"
SILENCE_S = 20.0  # without a message that long, the stream is taken to have ended
PANEL_INCHES = (2.6, 1.9)
DOTS_PER_INCH = 110


def main() -> None:
    args = parse_args()
    if args.draw:
        for row in stored.read("milestones"):
            print(draw(row, args.draw))
        return
    command = ["-m", "accuracy.milestones", *sys.argv[1:]]
    rows = RowFile(args.out, args.first_seed, args.commit, command)
    for cell in cells_of(args):
        port = free_port()
        trace = ["--kv-trace-endpoint", f"tcp://127.0.0.1:{port}", "--kv-trace-interval", "1"]
        with make_server([cell], REASONER, 1, trace) as server:
            seen = watch(server, cell, f"tcp://127.0.0.1:{port}")
        task, method, budget = cell.key
        lives = lifetimes(seen.events)
        given_up = sum(life.death is not None for life in lives)
        tokens = f"{given_up} of {len(lives)} tokens given up"
        print(f"{task} {method} {budget}: {len(seen.events)} samples, {tokens}")
        rows.write(
            RESULT,
            [len(lives)],
            "tokens",
            {"task": task, "method": method, "budget": budget, "index": 0},
            right=cell.task.verdict(0, seen.text).right,
            samples=len(seen.events),
            steps=seen.events[-1].step,
            lives=as_row(lives),
        )


class Seen(NamedTuple):
    """What was published of a request, and the answer."""

    events: list[TokenTrace]
    text: str


def watch(server: LocalServer, cell: Cell, endpoint: str) -> Seen:
    """Asks the first problem of a cell, and listens meanwhile.

    Raises:
        RuntimeError: nothing was published of it.
    """
    received: list[TraceBatch] = []
    answered = threading.Event()

    def subscribe() -> None:
        while not answered.is_set():
            for message in listen([endpoint], timeout_s=SILENCE_S):
                received.append(message.batch)

    listener = threading.Thread(target=subscribe)
    listener.start()
    ask = partial(_ask, server, cell)
    ask()  # who subscribes is sent what is published afterwards
    answer = ask()
    answered.set()
    listener.join()
    rid = answer["meta_info"]["id"]
    events = [event for batch in received for event in batch.events if event.rid == rid]
    if not events:
        raise RuntimeError(f"the stream must have samples of the request, got none: {cell.key}")
    return Seen(events, answer["text"])


def _ask(server: LocalServer, cell: Cell) -> dict[str, Any]:
    response = requests.post(server.url + "/generate", json=generate_body(cell, 0), timeout=1800)
    response.raise_for_status()
    return dict(response.json())


def draw(row: dict[str, Any], folder: Path) -> Path:
    """Draws a stored row: a token is a line at its birth, until it is overwritten."""
    import matplotlib

    matplotlib.use("agg")  # a drawing of so many lines is smaller as pixels
    from matplotlib import pyplot

    lives, chosen = of_row(row["lives"]), row["config"]
    layers, heads = (1 + max(life[place] for life in lives) for place in (0, 1))
    size = PANEL_INCHES[0] * layers, PANEL_INCHES[1] * heads
    figure, panels = pyplot.subplots(
        heads, layers, figsize=size, sharex=True, sharey=True, squeeze=False
    )
    for head in range(heads):
        for layer in range(layers):
            panel = panels[head][layer]
            _draw_lives(panel, [x for x in lives if x[:2] == (layer, head)], row["steps"])
            panel.set_title(f"layer {layer}, head {head}", fontsize=8)
    figure.supxlabel("decode step")
    figure.supylabel("generated token")
    figure.suptitle(f"{chosen['task']}, {chosen['method']}, L = {chosen['budget']}", fontsize=10)
    figure.set_layout_engine("constrained")
    name = "-".join([chosen["task"], chosen["method"], str(chosen["budget"])])
    path = folder / f"milestones-{name.replace(':', '-').replace(',', '-').replace('=', '-')}.png"
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None})
    pyplot.close(figure)
    return path


def _draw_lives(panel: Any, lives: Sequence[Lifetime], steps: int) -> None:
    births = [life.birth for life in lives]
    ends = [steps if life.death is None else life.death for life in lives]
    panel.hlines(births, births, ends, "#bb1133", linewidth=0.4)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_grid_flags(parser, methods=["raas"])
    parser.add_argument("--commit", help="commit that is measured, where git is not at hand")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--out", type=Path, help="JSON lines to append to")
    task.add_argument("--draw", type=Path, help="folder of the pictures of the stored rows")
    return parser.parse_args()


if __name__ == "__main__":
    main()
