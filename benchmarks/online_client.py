"""SGLang's own `sglang.bench_serving`, run in this process."""

import contextlib
import gc
import importlib
import io
import sys
from collections.abc import Sequence

NAME = "sglang.bench_serving"


def run_client(flags: Sequence[str]) -> None:
    """Runs one benchmark with a command line of its own.

    In a process for each it would spend ten seconds on imports, and be halted by Python's garbage
    collector, for which it finds more to do, while it notes when tokens come.

    Raises:
        RuntimeError: it failed; the text holds what it said.
    """
    said, arguments = io.StringIO(), sys.argv
    try:
        sys.argv = [NAME, *flags]
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            client = importlib.import_module(NAME)
            gc.collect()
            gc.freeze()
            client.cli_main()
    except (Exception, SystemExit) as error:
        raise RuntimeError(f"{NAME} must succeed, got {error!r}:\n{said.getvalue()}") from error
    finally:
        sys.argv = arguments
