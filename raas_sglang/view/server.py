"""The SGLang server that is watched, over HTTP."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

_TIMEOUT_S = 10.0


class NoTraceError(RuntimeError):
    """A server publishes no trace."""


class About(NamedTuple):
    """What a server says of itself.

    Attributes:
        endpoints: Where each of its ranks publishes its trace.
        tokenizer: Path or name of its tokenizer.
    """

    endpoints: list[str]
    tokenizer: str


class WatchedServer:
    """Asks a server for what its trace stream does not say.

    Args:
        url: ``http://HOST:PORT``.
        api_key: Of a server that was started with ``--api-key``.

    Raises:
        ValueError: the URL is not one.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"--server must be http://HOST:PORT, got {url!r}")
        self.url = url.rstrip("/")
        # Its trace is not to be had through a proxy either, and the key is meant for it alone.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def about(self) -> About:
        """Asks where its trace is, and what its tokens are.

        Raises:
            OSError: it does not answer, or is no SGLang server.
            NoTraceError: it publishes no trace.
        """
        info = self._call("/server_info")
        named = info.get("kv_trace_endpoint")
        if named is None:
            raise NoTraceError(
                f"the server at {self.url} must publish a trace, got one that was started without "
                "--kv-trace-endpoint; restart it with that flag"
            )
        try:
            address, _, port = named.removeprefix("tcp://").rpartition(":")
            host = urlsplit(self.url).hostname if address in ("*", "0.0.0.0") else address
            ranks = info.get("tp_size", 1) * info.get("dp_size", 1)
            endpoints = [f"tcp://{host}:{int(port) + rank}" for rank in range(ranks)]
        except (AttributeError, TypeError, ValueError) as error:
            raise ConnectionError(f"{self.url} must be an SGLang server: {error}") from error
        return About(endpoints, info.get("tokenizer_path") or "")

    def detokenize(self, lists: Sequence[Sequence[int]]) -> list[str]:
        """Returns the text of each list of token ids.

        Raises:
            urllib.error.HTTPError: it refuses, with 400 or 500 if one of them has no text.
            OSError: it does not answer, or is no SGLang server.
        """
        found = self._call("/detokenize", {"tokens": lists, "skip_special_tokens": False})
        texts = found.get("text")
        if not isinstance(texts, list) or len(texts) != len(lists):
            raise ConnectionError(
                f"{self.url}/detokenize must answer with {len(lists)} texts, got {found}"
            )
        return texts

    def _call(self, route: str, body: Any = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.url + route, data, self._headers)
        try:
            with self._opener.open(asked, timeout=_TIMEOUT_S) as answer:
                found = json.load(answer)
        except (http.client.HTTPException, ValueError) as error:
            raise ConnectionError(
                f"{self.url}{route} must answer with JSON, got {error!r}"
            ) from error
        if not isinstance(found, dict):
            raise ConnectionError(f"{self.url}{route} must answer with an object, got {found!r}")
        return found
