"""Which attributes the instances of a class have, found without making one."""

import ast
import inspect
from functools import cache


@cache
def names_of(cls: type) -> frozenset[str]:
    """Names of a class's attributes: its own, its fields, and what its methods assign."""
    names: set[str] = set()
    for base in cls.__mro__:
        names.update(vars(base))
        names.update(vars(base).get("__annotations__", ()))
        names.update(name for name, _ in assigned(base))
    return frozenset(names)


@cache
def assigned(cls: type) -> list[tuple[str, ast.FunctionDef]]:
    """What the methods of a class assign to attributes of their instance, and which does."""
    definition = definition_of(cls)
    methods = [node for node in definition.body if isinstance(node, ast.FunctionDef)]
    return [
        (node.attr, method)
        for method in methods
        if method.args.args
        for node in ast.walk(method)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == method.args.args[0].arg
    ]


@cache
def definition_of(cls: type) -> ast.ClassDef:
    """The syntax tree of a class; an empty one where it has no source, as of built-in classes."""
    empty = ast.ClassDef(cls.__name__, [], [], [], [])
    try:
        node: ast.AST = _tree(inspect.getsourcefile(cls) or "")
    except (OSError, TypeError):
        return empty
    for name in cls.__qualname__.split("."):
        body = getattr(node, "body", [])
        found = [n for n in body if isinstance(n, ast.ClassDef) and n.name == name]
        if not found:
            return empty
        node = found[-1]
    assert isinstance(node, ast.ClassDef)
    return node


@cache
def _tree(path: str) -> ast.Module:
    with open(path) as file:
        return ast.parse(file.read())
