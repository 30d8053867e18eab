"""Runs a program whose processes of SGLang are forks of this one, so that they import nothing.

    python forking_program.py (-m MODULE | FILE) ARGUMENT...

It is for where no shared fork will do, since SGLang is to read other settings while it is imported.
"""

import gc
import importlib
import multiprocessing
import runpy
import sys

PRELOADED = (
    "sglang.launch_server",
    "sglang.srt.entrypoints.http_server",
    "sglang.srt.models.registry",
    "sglang.srt.dllm.algorithm",  # which each scheduler imports when it starts
    "raas_patches.installation",
)


def let_sglang_fork() -> None:
    """SGLang's processes are forks of this one."""
    multiprocessing.set_start_method("fork", force=True)
    multiprocessing.set_start_method = lambda *_, **__: None  # SGLang asks for "spawn"
    gc.freeze()  # or each process looks through, and so copies, all that was imported


if __name__ == "__main__":
    for name in PRELOADED:
        importlib.import_module(name)
    let_sglang_fork()
    del sys.argv[0]
    if sys.argv[0] == "-m":
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
