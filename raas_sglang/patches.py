"""What changes SGLang. It is built on this package, which knows it by its entry points alone."""

from importlib.metadata import entry_points
from types import ModuleType

GROUP = "raas_sglang.patches"


def patches(name: str) -> ModuleType:
    """Imports a module that changes SGLang, or looks at it.

    Args:
        name: Of its entry point.

    Raises:
        ImportError: the package is not installed, or SGLang is another one.
        AttributeError: SGLang is another one.
    """
    for entry in entry_points(group=GROUP, name=name):
        module: ModuleType = entry.load()
        return module
    raise ImportError(
        f"raas-sglang must be installed, so that it has an entry point {name!r} of {GROUP}, got "
        "none; install it with pip or uv"
    )
