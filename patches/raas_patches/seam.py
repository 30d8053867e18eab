"""A seam: one function of SGLang that is hooked or relied on, what it must look like, and why."""

import functools
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sglang
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from raas_patches.fingerprint import innermost
from raas_patches.tested import function_problem
from raas_sglang import SUPPORTED_SGLANG


@dataclass(frozen=True)
class Seam:
    """A hook on one function of SGLang.

    Attributes:
        target: Dotted path of the function.
        kind: How `HookRegistry` puts the hook in.
        hook: The hook; its arguments depend on ``kind``.
        parameters: Names of the target's parameters that the hook was written for; None for a
            target with too many to name.
        why: What RaaS needs there.
        remove_when: What would make the hook unnecessary.
        test: A test that fails without it, as pytest names it.
    """

    target: str
    kind: HookType
    hook: Callable[..., Any]
    parameters: tuple[str, ...] | None
    why: str
    remove_when: str
    test: str

    @property
    def name(self) -> str:
        """The target without the package path that all seams share."""
        return _short(self.target)

    def problem(self) -> str | None:
        """Says what is wrong with the target in this SGLang, or None."""
        for kind, _, source in HookRegistry._hooks.get(self.target, ()):
            if kind is HookType.REPLACE:
                return f"replaced by {source.plugin_name if source else 'another plugin'}"
        found = _resolve_or_none(self.target)
        if found is not None and not inspect.isfunction(innermost(found)):
            return "built-in, so that a hook on it may never be called"
        if found is not None and self.parameters is not None:
            parameters = tuple(inspect.signature(found).parameters)
            if parameters != self.parameters:
                return f"changed: parameters are {parameters}, tested with {self.parameters}"
        return function_problem(self.target)

    def install(self) -> None:
        """Puts the hook in, once in each process; outside of those that are in already."""
        if self.is_installed():
            return
        hook = _marked(self.hook, self.kind)
        if self.target in HookRegistry._patched:
            # `apply_hooks` passes over what this plugin or another one has hooked before.
            HookRegistry._apply_target(self.target, [(self.kind, hook, None)])
        else:
            HookRegistry.register(self.target, hook, self.kind)

    def is_installed(self) -> bool:
        """Whether a call of the target reaches the hook."""
        found = _resolve_or_none(self.target)
        return found is not None and id(self.hook) in _hooks_around(found)


@dataclass(frozen=True)
class Reliance:
    """A function that RaaS calls, overrides or otherwise relies on, and does not hook.

    Attributes:
        target: Dotted path of the function.
        why: What RaaS relies on it for.
    """

    target: str
    why: str

    @property
    def name(self) -> str:
        """The target without the package path that all seams share."""
        return _short(self.target)

    def problem(self) -> str | None:
        """Says what is wrong with the target in this SGLang, or None."""
        return function_problem(self.target)


def version_problem() -> str | None:
    """Says what is wrong with the installed SGLang's version, or None."""
    if sglang.__version__ == SUPPORTED_SGLANG:
        return None
    return (
        f"RaaS must run on sglang=={SUPPORTED_SGLANG}, the version it was tested with, got "
        f"{sglang.__version__}; install that version: pip install sglang=={SUPPORTED_SGLANG}"
    )


def _short(target: str) -> str:
    return target.removeprefix("sglang.srt.")


def _resolve_or_none(target: str) -> Any:
    try:
        return pkgutil.resolve_name(target)
    except (ImportError, AttributeError):
        return None


def _marked(hook: Callable[..., Any], kind: HookType) -> Callable[..., Any]:
    """Wraps a hook so that it can be found again in the chain that `HookRegistry` builds."""

    @functools.wraps(hook)
    def marked(*args: Any, **kwargs: Any) -> Any:
        return hook(*args, **kwargs)

    marked._raas_hook = id(hook)  # type: ignore[attr-defined]
    return marked


def _hooks_around(function: Any) -> set[int]:
    """Marks of our hooks in a chain of wrappers."""
    marks: set[int] = set()
    while function is not None:
        for cell in getattr(function, "__closure__", None) or ():
            mark = getattr(cell.cell_contents, "_raas_hook", None)
            if mark is not None:
                marks.add(mark)
        function = getattr(function, "__wrapped__", None)
    return marks
