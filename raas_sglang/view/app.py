"""What the page asks for, over HTTP."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Response
from fastapi.responses import FileResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.middleware.trustedhost import TrustedHostMiddleware

from raas_sglang.view.follower import Follower
from raas_sglang.view.request import ViewedRequest

PAGE = Path(__file__).parent / "page"
# How often a page is told what is new.
_TICK_S = 0.05
# A browser loads and runs only files of this server, whatever a text holds.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:",
    "Cache-Control": "no-store",
}
_LARGEST_PICTURE = 4096


def make_app(follower: Follower) -> FastAPI:
    """Makes the application.

    Args:
        follower: What it shows.
    """
    viewer = uuid.uuid4().hex
    app = FastAPI(title="raas-sglang view", docs_url=None, redoc_url=None)
    # A page of somebody else's, whose name was made to lead here, must not read what is shown.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    app.mount("/page", StaticFiles(directory=PAGE), name="page")

    @contextmanager
    def request(key: int) -> Iterator[ViewedRequest]:
        try:
            with follower.book.request(key) as found:
                yield found
        except KeyError:
            raise HTTPException(404, f"no request {key} is known; it may be forgotten") from None

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers=_HEADERS)

    @app.get("/events")
    async def events() -> StreamingResponse:
        """A stream of server-sent events: what the list shows of whatever has changed."""
        return StreamingResponse(
            _events(follower, viewer), media_type="text/event-stream", headers=_HEADERS
        )

    @app.get("/requests/{key}")
    def state(
        key: int,
        step: int | None = None,
        words_from: Annotated[int, Query(ge=0)] = 0,
    ) -> Response:
        """A request as it was after a step, and its text from a position on."""
        with request(key) as found:
            at, previous, following = found.sampled(step)
            answer = {
                **found.summary(),
                "at": at,
                "previous": previous,
                "next": following,
                "held": found.held(at),
                "words_from": words_from,
                "words": follower.dictionary.words(found.token_ids, words_from),
                "tokens": len(found.token_ids),
            }
        return _answer(answer)

    @app.get("/requests/{key}/tokens/{token}")
    def token(key: int, token: int) -> Response:
        """What the heads did with a generated token."""
        with request(key) as found:
            if not 0 <= token < found.lives.tokens:
                raise HTTPException(404, f"no sample has shown generated token {token} yet")
            life = found.lives.life(token)
        return _answer({"ends": life.ends.tolist(), "last_use": life.last_use})

    @app.get("/requests/{key}/picture")
    def picture(
        key: int,
        rows: Annotated[int, Query(ge=1, le=_LARGEST_PICTURE)],
        columns: Annotated[int, Query(ge=1, le=_LARGEST_PICTURE)],
    ) -> Response:
        """The lives of its tokens; a byte for each point, see `Lives.picture`."""
        with request(key) as found:
            tokens = found.lives.tokens
            rows, columns = min(rows, tokens), min(columns, tokens)
            image = found.lives.picture(rows, columns, found.told.budget or 0)
        size = {"X-Rows": str(rows), "X-Columns": str(columns), "X-Tokens": str(tokens)}
        return Response(image.tobytes(), headers={**_HEADERS, **size})

    return app


async def _events(follower: Follower, viewer: str) -> AsyncIterator[str]:
    version, status = 0, None
    while True:
        at, changed = follower.book.changed(version)
        if changed or status != follower.status:
            version, status = at, follower.status
            about = {"viewer": viewer, "now": time.time(), "status": status}
            told = {**about, "requests": changed}
            yield f"data: {json.dumps(told)}\n\n"
        await asyncio.sleep(_TICK_S)


def _answer(value: dict[str, Any]) -> Response:
    return Response(json.dumps(value), media_type="application/json", headers=_HEADERS)
