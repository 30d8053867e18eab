"""A SGLang server as a child process, for the benchmarks, the tests and the demo."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import requests

from reasoner import REASONER, reasoner_environment

GUARD = Path(__file__).parent / "guard.py"
# SGLang's default grammar backend pins memory, which ends its scheduler where there is no GPU.
CPU_FLAGS = (
    *("--device", "cpu", "--attention-backend", "torch_native", "--dtype", "bfloat16"),
    *("--grammar-backend", "outlines"),
)
# Without a size, SGLang's KV cache takes most of the host's memory.
CPU_POOL = ("--max-total-tokens", "60000")
# SGLang's own checks: every slot accounted for after each step and when idle, no page free twice.
STRICT = {
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE": "1",
    "SGLANG_CHECK_KV_PAGE_INVARIANTS": "1",
}

_HOLDERS: list[socket.socket] = []  # of the ports that were chosen


class LocalServer:
    """Starts `python -m sglang.launch_server` and stops it with everything it started.

    A guard stops it as well when this process ends without doing so, even if it is killed.

    Args:
        flags: Command line after ``--model-path``; a port is chosen.
        environment: The child's environment.
        model_path: Model to serve; the bundled reasoner by default, which brings what SGLang lacks.
        timeout_s: How long the start may take.
    """

    ENDS: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGKILL)  # signals, until it ends

    def __init__(
        self,
        flags: list[str],
        environment: dict[str, str],
        model_path: Path = REASONER,
        timeout_s: float = 600.0,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = [
            *(sys.executable, "-m", "sglang.launch_server", "--model-path", str(model_path)),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *flags,
        ]
        is_reasoner = model_path.resolve().parent == REASONER.resolve().parent
        self.environment = reasoner_environment(environment) if is_reasoner else environment
        self.timeout_s = timeout_s
        self.log_path = Path(tempfile.mkstemp(prefix="sglang-", suffix=".log")[1])
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, progress: Callable[[float], None] = lambda seconds: None) -> None:
        """Starts the server and waits until it answers.

        Args:
            progress: Called about once a second with the seconds waited.

        Raises:
            RuntimeError: it ended or did not answer in time; the text holds the end of its log.
        """
        self.process = self._launch()
        began = time.monotonic()
        while not self._answers():
            waited = time.monotonic() - began
            if self.process.poll() is not None or waited > self.timeout_s:
                self.stop()
                raise RuntimeError(f"the server did not start in {waited:.0f} s:\n{self.log_end()}")
            progress(waited)
            time.sleep(1.0)

    def _launch(self) -> "subprocess.Popen[bytes]":
        with self.log_path.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-I", str(GUARD), *self.command],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self) -> None:
        """Ends the server and every process of its session."""
        if self.process is None:
            return
        for number in self.ENDS:
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(10.0)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        self.process = None

    def is_alive(self) -> bool:
        """Whether the server's main process runs, and its guard with it."""
        return self.process is not None and self.process.poll() is None

    def used_tokens(self) -> int:
        """Tokens of the pool that requests hold, and of the radix tree what they need.

        A scheduler publishes its load after each step, and about once a second when it is idle; a
        load older than the call may count a request that has ended, so this waits for a newer one.

        Raises:
            TimeoutError: a scheduler published none for ten seconds.
        """
        began = time.time()
        while time.time() < began + 10.0:
            loads = self._loads()
            if all(rank["timestamp"] > began for rank in loads):
                return sum(rank["num_used_tokens"] for rank in loads)
            time.sleep(0.05)
        raise TimeoutError("every scheduler must publish its load, got none newer than 10 s")

    def running_and_waiting(self) -> tuple[int, int]:
        """Requests that run and that wait, of all ranks."""
        loads = self._loads()
        names = ("num_running_reqs", "num_waiting_reqs")
        running, waiting = (sum(rank[name] for rank in loads) for name in names)
        return running, waiting

    def _loads(self) -> list[dict[str, Any]]:
        answer = requests.get(self.url + "/v1/loads?include=all", timeout=600)
        answer.raise_for_status()
        loads: list[dict[str, Any]] = answer.json()["loads"]
        return loads

    def log(self) -> str:
        """The server's output so far."""
        return self.log_path.read_text(errors="replace")

    def log_end(self, lines: int = 30) -> str:
        """The last lines of the server's output."""
        return "\n".join(self.log().splitlines()[-lines:])

    def _answers(self) -> bool:
        try:
            return requests.get(self.url + "/health", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    def __enter__(self) -> "LocalServer":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def free_port() -> int:
    """A port that the system gives to nobody else while this process runs.

    A server binds its port a minute after it was chosen, and others start beside it. It may bind
    this one, since both allow reuse and the holder does not listen.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    _HOLDERS.append(holder)
    return int(holder.getsockname()[1])
