"""Asks for a chain up to its first wrong token.

What a policy has given up stays lost, so the rest of a wrong chain says nothing about its verdict,
but may be most of what a server generates. How long such an output would have become, and whether
it would have ended in an answer, is not known then.
"""

import json
from typing import Any

import aiohttp

from accuracy.ask import generate_body, raise_if_refused
from accuracy.grid import Cell
from accuracy.samples import WRONG, sample_of
from accuracy.task import ReasonerTask

CHUNK_TOKENS = 64  # of one message


async def ask_until_wrong(session: aiohttp.ClientSession, cell: Cell, index: int) -> dict[str, Any]:
    """Asks one generated problem and returns its sample, whose lengths are those when it ended.

    Raises:
        RuntimeError: the server refused it.
        ValueError: the task's chains are not known.
    """
    task = cell.task
    if not isinstance(task, ReasonerTask):
        raise ValueError(
            f"--until-wrong must be asked of generated problems, got {task.name}; leave it out"
        )
    chain = task.problem(index).chain
    body = generate_body(cell, index) | {"stream": True}
    body["sampling_params"]["stream_interval"] = CHUNK_TOKENS
    answer: dict[str, Any] = {}
    async with session.post("/generate", json=body) as response:
        await raise_if_refused(cell, response)
        # Leaving early closes the connection, and the server aborts the request.
        async for line in response.content:
            if line.startswith(b"data: {"):
                answer = json.loads(line.removeprefix(b"data: "))
                # Cheap for a message that repeats a long text; a word that was cut short shows in
                # the next.
                if not chain.startswith(answer["text"].strip()):
                    break
    info = answer["meta_info"]
    finish = (info["finish_reason"] or {"type": WRONG})["type"]
    return sample_of(cell, index, answer["text"], info["completion_tokens"], finish, info)
