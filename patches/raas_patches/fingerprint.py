"""What a function of SGLang looks like: its form, its parameters, and a hash of its source.

Names alone do not say that a function is the one we were tested with: between two versions most
keep their parameters and change what they do. The hash is of the syntax tree, so that comments,
docstrings and line breaks do not count, and Python 3.11 and 3.12 agree.
"""

import ast
import hashlib
import inspect
import pkgutil
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

_OURS = ("raas_patches.", "raas_sglang.")
_BODIES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# The order matters: what the first three find are functions too.
_FORMS: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (inspect.isasyncgenfunction, "async generator"),
    (inspect.iscoroutinefunction, "coroutine"),
    (inspect.isgeneratorfunction, "generator"),
    (inspect.isfunction, "function"),
)
_DESCRIPTORS = {property: "property", classmethod: "class method", staticmethod: "static method"}


class Fingerprint(NamedTuple):
    """What a function is.

    Attributes:
        form: Such as ``function`` or ``class method, coroutine``; ``built-in`` of what is not
            written in Python, so that a hook on it may never be called.
        parameters: Their names, with ``*`` and ``/`` where they stand in the signature.
        source: Hash of the syntax tree; empty of a built-in.
    """

    form: str
    parameters: str
    source: str

    def difference(self, tested: "Fingerprint") -> str | None:
        """Says how this function is another than the tested one, or None.

        Args:
            tested: As recorded; without ``source`` only form and parameters count.
        """
        if self.form != tested.form:
            return f"changed: it is a {self.form}, tested was a {tested.form}"
        if self.parameters != tested.parameters:
            return f"changed: parameters are ({self.parameters}), tested were ({tested.parameters})"
        if tested.source and self.source != tested.source:
            return "changed: it has another source than the tested one"
        return None


def fingerprint(target: str) -> Fingerprint:
    """Looks at the function behind a dotted path, below whatever wraps it.

    Raises:
        ImportError: there is no such module.
        AttributeError: there is no such function.
    """
    static = _found(target)
    function = innermost(static)
    form = next((form for is_one, form in _FORMS if is_one(function)), "")
    if not form:
        return Fingerprint("built-in", "", "")
    form = ", ".join(filter(None, (_DESCRIPTORS.get(type(static)), form)))
    return Fingerprint(form, _parameters(function), _hash(inspect.getsource(function)))


def _found(target: str) -> Any:
    """What a path leads to as it is stored, so that a property is one; passes over our subclasses.

    Where we put a subclass in the place of a class, its path leads to ours.
    """
    path, _, name = target.rpartition(".")
    owner = pkgutil.resolve_name(path)
    for base in getattr(owner, "__mro__", ()):
        found = vars(base).get(name)
        if found is not None and not _module(innermost(found)).startswith(_OURS):
            return found
    return inspect.getattr_static(owner, name)


def _module(function: Any) -> str:
    return getattr(function, "__module__", None) or ""


def innermost(found: Any) -> Any:
    """The function below descriptors and wrappers, hooks among them."""
    for attribute in ("fget", "__func__"):
        found = getattr(found, attribute, found)
    return inspect.unwrap(found) if callable(found) else found


def _parameters(function: Callable[..., Any]) -> str:
    signature = inspect.signature(function)
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty, default=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
    ]
    return str(inspect.Signature(bare))[1:-1]


@cache  # the hooks that are in are verified as well as those to come
def _hash(source: str) -> str:
    tree = ast.parse(textwrap.dedent(source))
    return hashlib.sha256("".join(_words(tree)).encode()).hexdigest()[:16]


def _words(node: Any) -> Iterator[str]:
    """A syntax tree as text, without what says nothing about what is done."""
    if isinstance(node, list):
        yield "["
        for item in node:
            yield from _words(item)
        yield "]"
    elif isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        for name, value in ast.iter_fields(node):
            if name == "body" and isinstance(node, _BODIES) and ast.get_docstring(node, False):
                value = value[1:]
            if value not in (None, []):  # Python 3.12 has fields that 3.11 has not
                yield f" {name}="
                yield from _words(value)
        yield ")"
    else:
        yield repr(node)
