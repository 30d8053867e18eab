"""Asks a server for the samples of its cells, many at a time."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import aiohttp

from benchmarks.accuracy.grid import Cell
from benchmarks.accuracy.samples import SampleFile, sample_of

TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=600)


async def ask_cells(
    url: str,
    cells: Sequence[Cell],
    file: SampleFile,
    concurrency: int,
    progress: "Progress",
) -> None:
    """Collects every sample that is not in the file yet, in the order of the cells.

    Args:
        url: The server's address.
        cells: What to ask.
        file: Where the samples go.
        concurrency: Requests that wait at the same time.
        progress: Told of every sample.

    Raises:
        RuntimeError: the server refused a request.
    """
    jobs = _missing(cells, file)
    # A connection that is kept is closed by the server after 5 s; while many samples are graded at
    # once this would be noticed too late, in the next request.
    connector = aiohttp.TCPConnector(limit=concurrency, force_close=True)
    async with aiohttp.ClientSession(url, connector=connector, timeout=TIMEOUT) as session:

        async def work() -> None:
            for cell, index in jobs:  # one iterator, shared: each job is taken once
                sample = await ask(session, cell, index)
                file.write(sample)
                progress.note(cell, sample["right"])

        workers = [asyncio.create_task(work()) for _ in range(concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()


async def ask(session: aiohttp.ClientSession, cell: Cell, index: int) -> dict[str, Any]:
    """Asks one question and returns its sample.

    Raises:
        RuntimeError: the server refused it.
    """
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": cell.task.prompt(index)}],
        "seed": index,
        "custom_params": _custom_params(cell),
        **cell.task.sampling,
    }
    async with session.post("/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise RuntimeError(
                f"{cell.key} must be answered, got {response.status}: {await response.text()}"
            )
        answer = await response.json()
    choice, report = answer["choices"][0], answer["metadata"]["kv"][0]
    text = choice["message"]["content"] or ""
    tokens = answer["usage"]["completion_tokens"]
    return sample_of(cell, index, text, tokens, choice["finish_reason"], report)


def count_missing(cells: Sequence[Cell], file: SampleFile) -> int:
    """Samples that are still to be asked."""
    return sum(1 for _ in _missing(cells, file))


def _custom_params(cell: Cell) -> dict[str, Any]:
    budget = {} if cell.budget is None else {"kv_budget": cell.budget}
    return {"kv_policy": cell.method, **budget}


def _missing(cells: Sequence[Cell], file: SampleFile) -> Iterator[tuple[Cell, int]]:
    for cell in cells:
        yield from ((cell, index) for index in file.missing(cell.key, range(cell.n)))


class Progress:
    """Says how far a run has come.

    Args:
        total: Samples to collect.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self._right: dict[tuple, list[int]] = {}

    def note(self, cell: Cell, right: bool) -> None:
        """Counts a sample; prints a line when its cell is complete, and every hundred samples."""
        self.done += 1
        seen = self._right.setdefault(cell.key, [0, 0])
        seen[0] += right
        seen[1] += 1
        if seen[1] == cell.n or self.done % 100 == 0:
            task, method, budget = cell.key
            print(
                f"{self.done} of {self.total} samples; {task} {method} {budget}: "
                f"{seen[0]} of {seen[1]} right",
                flush=True,
            )
