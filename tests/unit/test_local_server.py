"""A server has its port to itself, and none is left running, however its parent ends."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.harness.server import LocalServer

ROOT = Path(__file__).parents[2]
# Answers as a server does that is up, with a child in its process group.
SERVER = """
import http.server, subprocess, sys
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Healthy).serve_forever()
"""
# Starts two in threads that end, as the benchmarks do.
PARENT = f"""
import os, signal, sys, time
from concurrent.futures import ThreadPoolExecutor
from benchmarks.harness.server import LocalServer
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores
servers = [LocalServer([], dict(os.environ)) for _ in range(2)]
for one in servers:
    one.command = [sys.executable, "-c", {SERVER!r}, str(one.port)]
with ThreadPoolExecutor(2) as pool:
    list(pool.map(LocalServer.start, servers))
print(*(one.process.pid for one in servers), flush=True)
time.sleep(600)
"""


def running(group: int) -> bool:
    """Whether a process of the group is left that is not a zombie."""
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_no_server_outlives_the_process_that_started_it(number):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], env=environment, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        groups = [int(word) for word in parent.stdout.readline().split()]
        assert len(groups) == 2
        assert all(map(running, groups))
        parent.send_signal(number)
    began = time.monotonic()
    while any(map(running, groups)) and time.monotonic() - began < 60:
        time.sleep(0.05)
    assert not any(map(running, groups))


def test_a_port_is_kept_for_its_server():
    place = ("127.0.0.1", LocalServer([], {}).port)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(place)
    socket.create_server(place).close()  # which reuses addresses, as uvicorn does
