"""The SGLang server that is watched, over HTTP."""

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

_TIMEOUT_S = 10.0


class WatchedServer:
    """Asks a server for what its trace stream does not say.

    Args:
        url: ``http://HOST:PORT``.
        api_key: Of a server that was started with ``--api-key``.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def endpoints(self) -> list[str]:
        """Where each of its ranks publishes its trace.

        Raises:
            OSError: it does not answer.
            RuntimeError: it publishes none.
        """
        info = self._call("/server_info")
        named = info.get("kv_trace_endpoint")
        if named is None:
            raise RuntimeError(
                f"the server at {self.url} must publish a trace, got one that was started without "
                "--kv-trace-endpoint; restart it with that flag"
            )
        address, _, port = named.removeprefix("tcp://").rpartition(":")
        host = urlsplit(self.url).hostname if address in ("*", "0.0.0.0") else address
        ranks = info.get("tp_size", 1) * info.get("dp_size", 1)
        return [f"tcp://{host}:{int(port) + rank}" for rank in range(ranks)]

    def detokenize(self, lists: Sequence[Sequence[int]]) -> list[str]:
        """Returns the text of each list of token ids.

        Raises:
            urllib.error.HTTPError: one of them has none.
            OSError: it does not answer.
        """
        body = {"tokens": lists, "skip_special_tokens": False}
        texts: list[str] = self._call("/detokenize", body)["text"]
        return texts

    def _call(self, route: str, body: Any = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.url + route, data, self._headers)
        with urllib.request.urlopen(asked, timeout=_TIMEOUT_S) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
