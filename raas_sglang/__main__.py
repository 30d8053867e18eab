"""Commands: ``python -m raas_sglang check``, ``cpu-env``, ``trace`` and ``view``."""

import argparse
import importlib.metadata
import os
import platform
import shlex
import sys
import warnings
from pathlib import Path

from raas_sglang import SUPPORTED_SGLANG, __version__
from raas_sglang.cpu import cpu_environment, hide_gpu
from raas_sglang.patches import patches

_CPU_VARIABLES = ("SGLANG_USE_CPU_ENGINE", "PYTHONPATH", "OMP_NUM_THREADS", "TRITON_INTERPRET")
# SGLang brings these; a report of a fault needs to name them.
_BESIDE = ("torch", "triton", "flashinfer-python")
Row = tuple[str, str, str]


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m raas_sglang", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    seams = commands.add_parser("check", help="compare the installed SGLang with the tested one")
    seams.add_argument("--deep", action="store_true", help="and play requests through it")
    cpu = commands.add_parser("cpu-env", help="print the variables that the CPU engine needs")
    cpu.add_argument("--page-size", type=int, default=1, help="SGLang's page size (tokens)")
    listener = commands.add_parser("trace", help="print what --kv-trace-endpoint publishes")
    listener.add_argument("endpoint", nargs="+", help="tcp://HOST:PORT, one for each rank")
    viewer = commands.add_parser("view", help="serve a page that shows what requests still hold")
    viewer.add_argument("--server", metavar="URL", help="default: http://127.0.0.1:30000")
    viewer.add_argument("--api-key", help="of the server, if it has one")
    viewer.add_argument("--port", type=int, default=8765, help="of the page (default: 8765)")
    viewer.add_argument(
        "--record", type=Path, metavar="FILE", help="append to it what is seen; show what it holds"
    )
    viewer.add_argument("--replay", type=Path, metavar="FILE", help="show it, and follow no server")
    args = parser.parse_args(argv)
    if args.command == "view":
        from raas_sglang.view.command import view  # what it imports comes with SGLang

        return view(args)
    if args.command == "cpu-env":
        return print_cpu_environment(args.page_size)
    return check(args.deep) if args.command == "check" else print_trace(args.endpoint)


def print_trace(endpoints: list[str]) -> int:
    """Prints a line for each request in each message, until nobody wants more."""
    # What these import comes with SGLang.
    from msgspec import MsgspecError

    from raas_sglang.trace.subscriber import lines, listen

    try:
        for line in lines(listen(endpoints)):
            print(line, flush=True)
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # of `| head`; Python flushes what is left when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (RuntimeError, MsgspecError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def print_cpu_environment(page_size: int) -> int:
    """Prints ``export`` lines for a shell's ``eval``."""
    try:
        environment = cpu_environment(page_size)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name in _CPU_VARIABLES:
        if name in environment:
            print(f"export {name}={shlex.quote(environment[name])}")
    return 0


def check(deep: bool = False) -> int:
    """Prints one row for each seam; returns 0 if all are as tested, 1 if not.

    Args:
        deep: Whether to play requests through SGLang's scheduler as well, on the CPU.
    """
    if deep:
        hide_gpu()
    warnings.simplefilter("ignore")  # SGLang's imports warn about kernels that are not asked for
    rows = [
        ("raas-sglang", "ok", f"version {__version__}"),
        ("python", "ok", f"version {platform.python_version()}{_beside()}"),
        _sglang(),
        _entry_point(),
    ]
    if _version("sglang") is not None:
        rows += _seams(deep)
    width = max(len(name) for name, _, _ in rows)
    for name, status, text in rows:
        print(f"{name:<{width}}  {status:<5}  {text}")
    broken = sum(status != "ok" for _, status, _ in rows)
    if not broken:
        print(f"all {len(rows)} are as tested: --kv-policy can start")
        return 0
    print(f"{broken} of {len(rows)} are not as tested with sglang=={SUPPORTED_SGLANG}:")
    print("--kv-policy will refuse to start")
    if _version("sglang") != SUPPORTED_SGLANG:
        print(f"install the tested version with: pip install sglang=={SUPPORTED_SGLANG}")
    return 1


def _sglang() -> Row:
    found = _version("sglang")
    if found == SUPPORTED_SGLANG:
        return "sglang", "ok", f"version {found}"
    wanted = f"must be version {SUPPORTED_SGLANG}, the one that RaaS was tested with"
    return "sglang", "WRONG", f"{wanted}, got {found or 'no sglang in this environment'}"


def _seams(deep: bool) -> list[Row]:
    try:
        check = patches("check")
    except (ImportError, AttributeError) as error:
        return [("raas_patches", "WRONG", f"cannot be imported ({error})")]
    return [*check.rows(), *(check.played() if deep else ())]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _beside() -> str:
    found = [(name, _version(name)) for name in _BESIDE]
    return "".join(f", {name} {version}" for name, version in found if version)


def _entry_point() -> Row:
    name = "entry point sglang.srt.plugins"
    values = [e.value for e in importlib.metadata.entry_points(group="sglang.srt.plugins")]
    if "raas_patches.plugin:register" in values:
        return name, "ok", "SGLang finds the plugin"
    return name, "WRONG", "SGLang does not find the plugin; install the package with pip or uv"


if __name__ == "__main__":
    sys.exit(main())
