"""Runs a command that must not outlive the process that asked for it.

    python guard.py COMMAND ARGUMENT...

Standard input must be a pipe whose other end that process alone holds: the kernel closes it however
the process ends. Then the guard kills its process group, which is the command's as well. (A
parent-death signal would come as soon as the *thread* that started the command ends.)
"""

import os
import signal
import subprocess
import sys
import threading


def main() -> int:
    # Signals to the group are meant for the command; not ignored, for it would inherit that.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    kill_after_parent(sys.stdin.fileno())
    return command.wait()


def kill_after_parent(pipe: int) -> None:
    """Kills this process group once the other end of a pipe is closed."""
    threading.Thread(target=_kill_after, args=(pipe,), daemon=True).start()


def _kill_after(pipe: int) -> None:
    while os.read(pipe, 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
