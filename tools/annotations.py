"""What an expression of ours is, as far as annotations say: a class, many of one, or unknown."""

import ast
import builtins
import pkgutil
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from raas_patches.attributes import assigned, definition_of
from raas_patches.fingerprint import innermost

THEIRS, OURS = ("sglang", "flashinfer"), ("raas_patches", "raas_sglang")
_MANY = {"list", "List", "Sequence", "Iterable", "Iterator", "set", "tuple", "Tuple", "deque"}
_INNER = {"Optional", "Final", "ClassVar", "Annotated", "type", "Type"}


@dataclass(frozen=True)
class Many:
    """The type of what holds instances of another."""

    item: Any


@dataclass(frozen=True)
class Result:
    """The type of what returns another when it is called."""

    value: Any


def item_of(value: Any) -> Any:
    """What is in something that holds many, or None."""
    return value.item if isinstance(value, Many) else None


@cache
def attribute_of(cls: type, name: str) -> Any:
    """What an attribute of an instance is, by the annotations of its class."""
    for base in cls.__mro__:
        if not base.__module__.startswith((*THEIRS, *OURS)):
            continue
        names = names_in(sys.modules[base.__module__])
        member = vars(base).get(name)
        if isinstance(member, property):
            return returned_by(member.fget)
        if isinstance(innermost(member), FunctionType):
            return Result(returned_by(innermost(member)))
        for node in ast.walk(definition_of(base)):
            if isinstance(node, ast.AnnAssign) and name in _target(node.target):
                return annotated(node.annotation, names)
        for attr, method in assigned(base):
            if attr == name and (found := _stored(method, name, names)) is not None:
                return found
    return None


def _target(node: ast.expr) -> tuple[str, ...]:
    return (node.id,) if isinstance(node, ast.Name) else (getattr(node, "attr", ""),)


def _stored(method: ast.FunctionDef, name: str, names: dict[str, Any]) -> Any:
    """What a method assigns to an attribute: one of its parameters, or a new instance."""
    parameters = {arg.arg: arg.annotation for arg in (*method.args.args, *method.args.kwonlyargs)}
    for node in ast.walk(method):
        if isinstance(node, ast.Assign) and name in _target(node.targets[0]):
            value = node.value
            if isinstance(value, ast.Name) and value.id in parameters:
                return annotated(parameters[value.id], names)
            if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
                made = names.get(value.func.id)
                return made if isinstance(made, type) else None
    return None


@cache
def returned_by(function: FunctionType) -> Any:
    """What a function says that it returns."""
    note = function.__annotations__.get("return")
    if isinstance(note, str):
        names = names_in(sys.modules[function.__module__])
        return annotated(ast.Constant(note), names)
    return note if isinstance(note, type) else None


def annotated(node: ast.expr | None, names: dict[str, Any]) -> Any:
    """What an annotation stands for: a class, many of one, or None."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return annotated(ast.parse(node.value, mode="eval").body, names)
    if isinstance(node, ast.Name):
        found = names.get(node.id, getattr(builtins, node.id, None))
        return found if isinstance(found, type) else None
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return getattr(names.get(node.value.id), node.attr, None)
    if isinstance(node, ast.BinOp):
        return annotated(node.left, names) or annotated(node.right, names)
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        first = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice
        if node.value.id in _INNER:
            return annotated(first, names)
        if node.value.id in _MANY:
            return Many(annotated(first, names))
        if node.value.id == "Callable":
            return Result(annotated(node.slice.elts[1], names))  # type: ignore[attr-defined]
    return None


@cache
def names_in(module: ModuleType) -> dict[str, Any]:
    """What names mean in a module, those imported for annotations included."""
    names = dict(vars(module))
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                name = alias.asname or alias.name
                if name not in names:
                    names[name] = _imported(f"{node.module}.{alias.name}")
    return names


def tree_of(module: ModuleType) -> ast.Module:
    """The source of a module; empty where it is not Python."""
    path = Path(getattr(module, "__file__", None) or "")
    return ast.parse(path.read_text()) if path.suffix == ".py" else ast.Module([], [])


@cache
def _imported(path: str) -> Any:
    if not path.startswith((*THEIRS, *OURS)):
        return None
    try:
        return pkgutil.resolve_name(path)
    except Exception:  # noqa: BLE001 - modules of other hardware raise what they like
        return None
