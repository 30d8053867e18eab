"""Runs SGLang on a machine without a GPU."""

import ctypes
import os
import sys
from pathlib import Path

_STAND_IN = Path(__file__).parent


def has_driver() -> bool:
    """Whether an NVIDIA driver is installed, so that SGLang's own kernels can be imported."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def cpu_environment(page_size: int = 1) -> dict[str, str]:
    """Returns the environment in which `python -m sglang.launch_server --device cpu` works.

    Args:
        page_size: SGLang's page size; above 1 its allocator is Triton, which is then interpreted,
            and so are this project's kernels.

    Raises:
        RuntimeError: the machine has an NVIDIA driver, where the stand-in must not be used.
    """
    if has_driver():
        raise RuntimeError(
            "the CPU engine must run on a machine without an NVIDIA driver, got one with libcuda; "
            "start SGLang as usual"
        )
    environment = {**os.environ, "SGLANG_USE_CPU_ENGINE": "1"}
    # Threads of several processes that spin for each other on a few cores cost a factor of 20.
    environment.setdefault("OMP_NUM_THREADS", "1")
    paths = [str(_STAND_IN), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    if page_size > 1:
        environment["TRITON_INTERPRET"] = "1"
    return environment


def hide_gpu() -> None:
    """Lets SGLang run on the CPU in this process, whatever the machine has.

    Raises:
        RuntimeError: it is too late, since SGLang was imported.
    """
    if "sglang" in sys.modules:
        raise RuntimeError("the GPU must be hidden before SGLang is imported, got it imported")
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "SGLANG_USE_CPU_ENGINE": "1"}
    sys.path.insert(0, str(_STAND_IN))
