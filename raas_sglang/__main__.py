"""Commands: ``python -m raas_sglang check``, ``cpu-env`` and ``trace``."""

import argparse
import importlib.metadata
import shlex
import sys
import warnings

from raas_sglang import SUPPORTED_SGLANG, __version__
from raas_sglang.cpu import cpu_environment
from raas_sglang.trace.subscriber import lines, listen

_CPU_VARIABLES = ("SGLANG_USE_CPU_ENGINE", "PYTHONPATH", "OMP_NUM_THREADS", "TRITON_INTERPRET")


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m raas_sglang", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="verify every seam of the installed SGLang, start nothing")
    cpu = commands.add_parser("cpu-env", help="print the variables that the CPU engine needs")
    cpu.add_argument("--page-size", type=int, default=1, help="SGLang's page size (tokens)")
    listener = commands.add_parser("trace", help="print what --kv-trace-endpoint publishes")
    listener.add_argument("endpoint", nargs="+", help="tcp://HOST:PORT, one for each rank")
    args = parser.parse_args(argv)
    if args.command == "cpu-env":
        return print_cpu_environment(args.page_size)
    return check() if args.command == "check" else print_trace(args.endpoint)


def print_trace(endpoints: list[str]) -> int:
    """Prints a line for each request in each message, until interrupted."""
    try:
        for line in lines(listen(endpoints)):
            print(line, flush=True)
    except KeyboardInterrupt:
        return 0
    except RuntimeError as error:
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


def check() -> int:
    """Prints one row for each seam; returns 0 if all are as tested, 1 if not."""
    warnings.simplefilter("ignore")  # SGLang's imports warn about kernels that are not asked for
    from raas_patches.installation import ALWAYS, ELSEWHERE, WITH_POLICY, WITH_TRACE, verify
    from raas_patches.seam import version_problem

    rows = [("raas-sglang", "ok", f"version {__version__}")]
    wrong = version_problem()
    found = importlib.metadata.version("sglang")
    rows.append(("sglang", "WRONG" if wrong else "ok", wrong or f"version {found}"))
    rows.append(_entry_point())
    for verdict in verify(ALWAYS + WITH_POLICY + WITH_TRACE + ELSEWHERE):
        status = "WRONG" if verdict.problem else "ok"
        rows.append((verdict.seam.name, status, verdict.problem or verdict.seam.why))
    width = max(len(name) for name, _, _ in rows)
    for name, status, text in rows:
        print(f"{name:<{width}}  {status:<5}  {text}")
    broken = sum(status != "ok" for _, status, _ in rows)
    if broken:
        print(f"{broken} of {len(rows)} are not as tested with sglang=={SUPPORTED_SGLANG}:")
        print("--kv-policy will refuse to start")
        return 1
    print(f"all {len(rows)} are as tested: --kv-policy can start")
    return 0


def _entry_point() -> tuple[str, str, str]:
    name = "entry point sglang.srt.plugins"
    values = [e.value for e in importlib.metadata.entry_points(group="sglang.srt.plugins")]
    if "raas_patches.plugin:register" in values:
        return name, "ok", "SGLang finds the plugin"
    return name, "WRONG", "SGLang does not find the plugin; install the package with pip or uv"


if __name__ == "__main__":
    sys.exit(main())
