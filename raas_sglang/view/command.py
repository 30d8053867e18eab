"""The command `python -m raas_sglang view`."""

import argparse
import socket
import sys

import uvicorn

from raas_sglang.view.app import make_app
from raas_sglang.view.follower import Follower
from raas_sglang.view.server import WatchedServer

# Whoever reaches the page reads every text.
_HOST = "127.0.0.1"


def view(args: argparse.Namespace) -> int:
    """Serves the page until Ctrl+C; returns the exit code."""
    if args.replay is not None and (args.server is not None or args.record is not None):
        print(
            "error: --replay must be used without --server and --record, since a recorded trace "
            "is all that it shows; leave them out",
            file=sys.stderr,
        )
        return 2
    server = None
    try:
        if args.replay is None:
            server = WatchedServer(args.server or "http://127.0.0.1:30000", args.api_key)
        follower = Follower(server, args.record, args.replay)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        listening = socket.create_server((_HOST, args.port))
    except (OSError, OverflowError) as error:
        print(f"error: --port must be free, got {args.port}: {error}; use another", file=sys.stderr)
        return 1
    print(f"open http://{_HOST}:{args.port} ({follower.status}); end with Ctrl-C", flush=True)
    # Pages listen for ever, so it does not wait for them at the end.
    config = uvicorn.Config(make_app(follower), log_level="warning", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run([listening])
    return 0
