"""Servers that start in seconds: forks of a process that has imported SGLang once.

A start is mostly imports, in three processes. SGLang spawns them anew since CUDA cannot be forked;
on the CPU engine nothing is in the way.
"""

import multiprocessing
import os
import runpy
import signal
import sys
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.harness.guard import kill_after_parent
from benchmarks.harness.server import STRICT, LocalServer
from forking_program import PRELOADED, let_sglang_fork
from raas_sglang.cpu import cpu_environment
from reasoner import reasoner_environment

PROGRAM = Path(__file__).with_name("forking_program.py")
# What SGLang does not read while it is imported, when it is too late for a fork.
READ_LATER = {*STRICT, "SGLANG_PLUGINS"}
_CONTEXT = multiprocessing.get_context("forkserver")
_AT_START = dict(os.environ)  # SGLang's code, called by tests, adds to it


def fork_context() -> multiprocessing.context.ForkServerContext:
    """The context whose processes have imported SGLang; there is one in a run of pytest."""
    _CONTEXT.set_forkserver_preload(list(PRELOADED))
    with patch.dict(os.environ, reasoner_environment(environment_at_start()), clear=True):
        forkserver.ensure_running()
    return _CONTEXT


def environment_at_start(page_size: int = 1) -> dict[str, str]:
    """The environment of a server on the CPU, without what tests left in that of this process.

    torch compiles nothing: for functions of some models it would take half a minute.
    """
    with patch.dict(os.environ, _AT_START, clear=True):
        return {**cpu_environment(page_size), "TORCH_COMPILE_DISABLE": "1"}


def write_to(log: Path) -> None:
    """Lets all that this process and its forks say go to a file."""
    with log.open("ab") as file:
        for descriptor in (sys.stdout.fileno(), sys.stderr.fileno()):
            os.dup2(file.fileno(), descriptor)


class ForkedProcess:
    """`sglang.launch_server` with the methods of `subprocess.Popen` that `LocalServer` uses."""

    def __init__(self, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        context = fork_context()
        reader, self._writer = context.Pipe(duplex=False)
        self._process = context.Process(target=_run, args=(arguments, environment, log, reader))
        self._process.start()
        reader.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout_s: float) -> None:
        self._process.join(timeout_s)


class ForkingServer(LocalServer):
    """A `LocalServer` whose first process imports SGLang, in its environment, and is forked."""

    ENDS = (signal.SIGKILL,)  # without a GPU there is nothing to release

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.command.insert(1, str(PROGRAM))


class ForkedServer(ForkingServer):
    """One whose first process is a fork as well, of one that tests share."""

    def _launch(self) -> ForkedProcess:
        return ForkedProcess(self.command[4:], self.environment, self.log_path)


def _run(arguments: list[str], environment: dict[str, str], log: Path, reader: Connection) -> None:
    """Becomes the server, in a session of its own, until the other end of the pipe is closed."""
    os.setsid()
    kill_after_parent(reader.fileno())
    write_to(log)
    _require_read_later(environment)
    os.environ |= environment
    sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)
    let_sglang_fork()
    sys.argv[1:] = arguments
    runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)


def _require_read_later(environment: dict[str, str]) -> None:
    differ = {name for name, _ in environment.items() - os.environ.items()} - READ_LATER
    early = sorted(name for name in differ if name.startswith(("SGLANG_", "TRITON_")))
    if early:
        raise ValueError(
            f"{', '.join(early)} must be set before SGLang is imported, for all that is known: use "
            f"ForkingServer, or add to READ_LATER what SGLang reads later"
        )
