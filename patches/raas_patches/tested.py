"""What SGLang and FlashInfer were when RaaS was tested with them, from `tested.json`."""

import json
import pkgutil
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from raas_patches.attributes import names_of
from raas_patches.fingerprint import Fingerprint, fingerprint

RECORD = Path(__file__).with_suffix(".json")


def function_problem(target: str) -> str | None:
    """Says how a function differs from the tested one, or None.

    Args:
        target: Its dotted path.
    """
    try:
        found = fingerprint(target)
    except (ImportError, AttributeError) as error:
        return f"missing ({error})"
    tested = functions().get(target)
    if tested is None:
        return "not recorded as tested; run python tools/generate.py"
    return found.difference(tested)


def attribute_problem(target: str) -> str | None:
    """Says that an attribute of a class or a module is missing, or None.

    Args:
        target: Dotted path of the class or module, and the attribute.
    """
    path, _, name = target.rpartition(".")
    try:
        owner = pkgutil.resolve_name(path)
    except (ImportError, AttributeError) as error:
        return f"missing ({error})"
    names = vars(owner) if isinstance(owner, ModuleType) else names_of(owner)
    return None if name in names else f"missing (no attribute {name!r})"


def use_problems(module: str, attributes: bool = True) -> dict[str, str]:
    """What is wrong with the names of SGLang and FlashInfer that one of our modules uses.

    Args:
        module: Its dotted path.
        attributes: Whether to look for attributes as well; that reads whole modules.

    Returns:
        Each that differs, with what is wrong with it.
    """
    known = functions()
    found = {
        target: function_problem(target) if target in known else attribute_problem(target)
        for target in uses().get(module, ())
        if attributes or target in known
    }
    return {target: problem for target, problem in found.items() if problem}


@cache
def functions() -> dict[str, Fingerprint]:
    """Every function that is hooked, called, overridden or watched, by its dotted path."""
    return {target: Fingerprint(*values) for target, values in _record()["functions"].items()}


def uses() -> dict[str, list[str]]:
    """What each of our modules calls, overrides or reads without hooking it."""
    found: dict[str, list[str]] = _record()["uses"]
    return found


@cache
def _record() -> dict[str, Any]:
    record: dict[str, Any] = json.loads(RECORD.read_text())
    return record
