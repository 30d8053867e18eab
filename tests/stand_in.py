"""The HTTP side of a server that the page of `raas_sglang view` watches; it has no model."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class StandIn:
    """Names an endpoint, and calls token 7 ``w7``.

    Args:
        endpoint: Where the trace is published.

    Attributes:
        speaks: While it is not set, texts of tokens are waited for.
    """

    def __init__(self, endpoint: str) -> None:
        self.speaks = threading.Event()
        self.speaks.set()

        class Handler(_Handler):
            info = {"kv_trace_endpoint": endpoint, "tp_size": 1, "dp_size": 1}  # noqa: RUF012
            speaks = self.speaks

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "StandIn":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    info: dict[str, object]
    speaks: threading.Event

    def do_GET(self) -> None:
        self._answer(self.info)

    def do_POST(self) -> None:
        self.speaks.wait()
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer({"text": ["".join(f" w{i}" for i in ids) for ids in asked["tokens"]]})

    def _answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Says nothing."""
