"""Stored results: one JSON line each, with what a reader needs to believe and to repeat it."""

import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("sglang", "torch", "triton", "flashinfer-python", "sglang-kernel", "raas-sglang")


class RowFile:
    """Appends rows to a file, each flushed at once, so that an interrupted run keeps what it has.

    Args:
        path: File of JSON lines; made if it is not there.
        seed: Seed of the run's inputs.
        commit: Commit that was measured; asked of git if not given.
        command: Arguments of the run, what follows `python`; those of this process by default.

    Raises:
        RuntimeError: no commit was given and git knows none.
    """

    def __init__(
        self, path: Path, seed: int, commit: str | None = None, command: Sequence[str] | None = None
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._about = {
            "command": shlex.join(["python", *(own_command() if command is None else command)]),
            "commit": commit or commit_of_checkout(),
            **device(),
            "versions": versions(),
            "seed": seed,
        }

    def write(
        self,
        result: str,
        values: Sequence[float],
        unit: str,
        config: dict[str, Any],
        **details: Any,
    ) -> dict[str, Any]:
        """Stores one result and returns its row.

        Args:
            result: What was measured.
            values: One value for each repetition; their median is the result.
            unit: Unit of the values.
            config: What was chosen: arm, model, batch and so on.
            **details: What else was seen; must be serialisable.

        Raises:
            ValueError: there is no value.
        """
        if not values:
            raise ValueError(f"{result!r} must have at least one value, got none")
        row = {
            "result": result,
            "value": statistics.median(values),
            "unit": unit,
            "spread": [min(values), max(values)],
            "repeats": len(values),
            "values": list(values),
            "config": config,
            **details,
            **self._about,
        }
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        return row


def own_command() -> list[str]:
    """What follows `python` in the command that started this process."""
    spec = sys.modules["__main__"].__spec__
    return [*(("-m", spec.name) if spec else sys.argv[:1]), *sys.argv[1:]]


def versions() -> dict[str, str]:
    """Returns the versions of what is measured, without what is not installed here."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device() -> dict[str, str | None]:
    """Returns GPU and driver, both null on a machine that has none."""
    seen = gpu_query("name,driver_version")
    name, driver = seen if seen else (None, None)
    return {"gpu": name, "driver": driver, "machine": platform.machine()}


def gpu_query(fields: str) -> list[str] | None:
    """Asks `nvidia-smi` for comma-separated fields of the first GPU that servers may use.

    Returns:
        One text for each field, or None on a machine without a GPU.
    """
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    if first := os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0]:
        command.append(f"--id={first}")
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return [value.strip() for value in answer.splitlines()[0].split(",")]


def commit_of_checkout() -> str:
    """Returns the commit that is checked out, marked where files differ from it.

    Raises:
        RuntimeError: git knows none.
    """
    command = ["git", "describe", "--always", "--dirty"]
    folder = Path(__file__).parent
    try:
        answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise RuntimeError(
            f"the commit must be known, got {error} from git; "
            "run in a checkout or name it with --commit"
        ) from error
    return answer.stdout.strip()
