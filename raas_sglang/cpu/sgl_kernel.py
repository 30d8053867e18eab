"""Stands in for SGLang's compiled kernels, which cannot be imported without an NVIDIA driver.

SGLang imports them even where it runs on the CPU, and calls none of them for a Llama or Qwen2 model
there. Every attribute exists and raises when it is called, so a call that was not expected is an
error and never a wrong result.
"""

from typing import Any, NoReturn

__path__: list[str] = []
__version__ = "0"


class _Absent:
    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(
            f"sgl_kernel.{self._name} must run on an NVIDIA GPU, got a machine without a driver; "
            "this model cannot be served on the CPU"
        )

    def __getattr__(self, name: str) -> "_Absent":
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(f"{self._name}.{name}")


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Absent(name)
