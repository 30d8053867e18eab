"""Collects samples: ``python -m accuracy.run --help`` from ``benchmarks/``.

    python -m accuracy.run --tasks milestone:1200 uniform:602 --methods dense raas window h2o \
        --budgets 64 256 1/8 --n 200 --out ../out/samples.jsonl

asks the bundled reasoner through a server of its own; methods are policies. The same command goes
on where an interrupted one stopped. ``--url`` asks a running server instead. Real questions:

    python -m accuracy.run --model-path MODEL --tasks gsm8k:FILE math500:FILE gsm8k*4:FILE \
        --greedy --max-tokens 2048 ...
"""

import argparse
import asyncio
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from accuracy.ask import Progress, ask, ask_cells, count_missing
from accuracy.grid import Cell, add_grid_flags, cells_of
from accuracy.samples import SampleFile, add_sample_flags
from accuracy.server import by_server, make_server
from accuracy.until_wrong import ask_until_wrong
from local_server import REASONER
from rows import commit_of_checkout


def main() -> int:
    args = parse_args()
    # Ended from outside, it still stops its servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    cells = cells_of(args)
    about = {
        "command": shlex.join(["python", "-m", "accuracy.run", *sys.argv[1:]]),
        "commit": args.commit or commit_of_checkout(),
        "first_seed": args.first_seed,
        "model": args.model_path.name if args.model_path != REASONER else "reasoner",
    }
    file = SampleFile(args.out, args.texts, about)
    total = count_missing(cells, file)
    print(f"{total} samples to collect in {len(cells)} cells", flush=True)
    try:
        asyncio.run(asyncio.wait_for(collect(cells, file, Progress(total), args), args.seconds))
    except TimeoutError:
        print(f"{args.seconds} s are used up; {args.out} holds what was collected", flush=True)
        return 3
    finally:
        file.close()
    return 0


async def collect(
    cells: Sequence[Cell], file: SampleFile, progress: Progress, args: argparse.Namespace
) -> None:
    """Asks all cells, of one running server or of as many of its own as may run together."""
    asker = ask_until_wrong if args.until_wrong else ask
    if args.url:
        await ask_cells(args.url, cells, file, args.concurrency, progress, asker)
        return

    async def serve(group: list[Cell]) -> None:
        if not count_missing(group, file):
            return
        flags = shlex.split(args.server_flags)
        server = make_server(group, args.model_path, args.concurrency, flags)
        try:
            await asyncio.to_thread(server.start)
            print(f"up: {shlex.join(server.command)}", flush=True)
            await ask_cells(server.url, group, file, args.concurrency, progress, asker)
        except Exception:
            print(f"failed: {shlex.join(server.command)}\n{server.log_end()}", flush=True)
            raise
        finally:
            await asyncio.to_thread(server.stop)

    # A server that fails does not keep the others from their samples.
    servers = by_server(cells, args.parallel_servers)
    results = await asyncio.gather(*map(serve, servers), return_exceptions=True)
    for error in filter(None, results):
        raise error


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_grid_flags(parser, methods=["dense", "raas"])
    parser.add_argument("--url", help="a running server, such as http://127.0.0.1:30000")
    parser.add_argument("--model-path", type=Path, default=REASONER)
    parser.add_argument(
        "--parallel-servers", type=int, default=1, help="servers that share the methods"
    )
    parser.add_argument(
        "--server-flags", default="", help="further flags of every server, one text"
    )
    parser.add_argument("--concurrency", type=int, default=32, help="requests at a time and server")
    parser.add_argument(
        "--until-wrong", action="store_true", help="asks for a chain up to its first wrong token"
    )
    parser.add_argument("--seconds", type=float, help="stops after so long with what it has")
    add_sample_flags(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
