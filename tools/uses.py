"""What our code uses of SGLang and FlashInfer without hooking it, found in its source.

An attribute that another SGLang renamed is an `AttributeError` in the middle of a request. So what
we call, override and read is listed, and `python -m raas_sglang check` looks at each. What an
expression is follows from annotations, ours and theirs; where there are none nothing is found.
"""

import ast
import importlib
import pkgutil
import sys
from collections.abc import Iterator
from functools import cache
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from annotations import (
    OURS,
    THEIRS,
    Many,
    Result,
    annotated,
    attribute_of,
    item_of,
    names_in,
    returned_by,
    tree_of,
)
from raas_patches.attributes import assigned, names_of
from raas_patches.fingerprint import innermost


class Use(NamedTuple):
    """A name of theirs that a module of ours uses.

    Attributes:
        target: Its dotted path.
        how: ``overrides`` or ``calls`` for a function, ``reads`` for anything else.
    """

    target: str
    how: str


def uses() -> dict[str, set[Use]]:
    """What each of our modules uses of theirs, besides what it hooks.

    Raises:
        AttributeError: something that is used is not there, and we do not put it there.
    """
    found: dict[str, set[Use]] = {}
    given: set[str] = set()
    unknown: dict[str, str] = {}
    for module in _modules():
        tree = tree_of(module)
        given |= set(_given(tree))
        found[module.__name__] = set(_overrides(module))
        for owner, name, line in _Reader(module, tree):
            use = _use(owner, name)
            if use is not None:
                found[module.__name__].add(use)
            else:
                unknown[f"{owner.__name__}.{name}"] = f"{module.__name__}:{line}"
    missing = {key: where for key, where in unknown.items() if key.rpartition(".")[2] not in given}
    if missing:
        raise AttributeError(f"used by us, and not there: {missing}")
    return {module: targets for module, targets in sorted(found.items()) if targets}


def _use(owner: Any, name: str) -> Use | None:
    """A use of an attribute of one of their modules or classes; None if there is none."""
    if isinstance(owner, ModuleType):
        member, path = vars(owner).get(name), f"{owner.__name__}.{name}"
        if isinstance(innermost(member), FunctionType):
            return Use(path, "calls")
        return Use(path, "reads") if name in vars(owner) else None
    for base in owner.__mro__:
        if isinstance(innermost(vars(base).get(name)), FunctionType):
            return Use(f"{base.__module__}.{base.__qualname__}.{name}", "calls")
    return Use(f"{_path(owner)}.{name}", "reads") if name in names_of(owner) else None


def _is_ours(cls: type) -> bool:
    """Whether we wrote a class, under whatever name it goes."""
    return cls.__module__.startswith(OURS) or cls in _all_ours()


def _is_theirs(cls: type) -> bool:
    return cls.__module__.startswith(THEIRS) and not _is_ours(cls)


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _overrides(module: ModuleType) -> Iterator[Use]:
    """Methods of theirs that the classes of a module stand in for."""
    for cls in _classes(module):
        theirs = [base for base in cls.__mro__ if _is_theirs(base)]
        ours = [base for base in cls.__mro__ if _is_ours(base)]
        for name in {name for base in ours for name in vars(base)} if theirs else ():
            base = next((base for base in theirs if name in vars(base)), None)
            if base and isinstance(innermost(vars(base)[name]), FunctionType):
                yield Use(f"{_path(base)}.{name}", "overrides")


def _classes(module: ModuleType) -> list[type]:
    nodes = [node for node in tree_of(module).body if isinstance(node, ast.ClassDef)]
    return [vars(module)[node.name] for node in nodes]


@cache
def _all_ours() -> frozenset[type]:
    return frozenset(cls for module in _modules() for cls in _classes(module))


def _modules() -> Iterator[ModuleType]:
    for package in OURS:
        root = importlib.import_module(package)
        for info in pkgutil.walk_packages(root.__path__, f"{package}."):
            # The probe runs SGLang, and says itself what is missing.
            if not info.name.endswith(("__main__", "cpu.sgl_kernel")) and "probe" not in info.name:
                yield importlib.import_module(info.name)


def _given(tree: ast.Module) -> Iterator[str]:
    """Names that a module of ours gives to attributes: by assigning, by `setattr`, as methods."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.ClassDef):
            yield from (each.name for each in node.body if isinstance(each, ast.FunctionDef))


class _Reader:
    """Goes through the functions of a module and yields (class or module, attribute, line)."""

    def __init__(self, module: ModuleType, tree: ast.Module) -> None:
        self.names, self.tree = names_in(module), tree
        self.found: list[tuple[Any, str, int]] = []

    def __iter__(self) -> Iterator[tuple[Any, str, int]]:
        self._block(self.tree.body, {}, None)
        return iter(self.found)

    def _block(self, body: list[ast.stmt], env: dict[str, Any], cls: type | None) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                self._block(node.body, {}, self.names.get(node.name))
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                self._block(node.body, env | self._parameters(node, cls), None)
            else:
                self._statement(node, env, cls)

    def _parameters(self, node: Any, cls: type | None) -> dict[str, Any]:
        args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        types = {arg.arg: annotated(arg.annotation, self.names) for arg in args}
        if cls is not None and args:
            types[args[0].arg] = cls
            types["super"] = Result(next((b for b in cls.__mro__[1:] if _is_theirs(b)), None))
        return types

    def _statement(self, node: ast.stmt, env: dict[str, Any], cls: type | None) -> None:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                self._type(target, env)  # an attribute that is written is one of theirs as well
            self._bind(node.targets[0], self._type(node.value, env), env)
        elif isinstance(node, ast.AnnAssign):
            self._bind(node.target, annotated(node.annotation, self.names), env)
        elif isinstance(node, ast.For | ast.AsyncFor):
            self._bind(node.target, item_of(self._type(node.iter, env)), env)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                self._block([child], env, cls)
            elif isinstance(child, ast.expr):
                self._type(child, env)
            else:  # handlers, items of a with statement
                self._statement(child, env, cls)  # type: ignore[arg-type]

    def _bind(self, target: ast.expr, value: Any, env: dict[str, Any]) -> None:
        if isinstance(target, ast.Name):
            env[target.id] = value
        elif isinstance(target, ast.Tuple):
            items = value if isinstance(value, tuple) else [item_of(value)] * len(target.elts)
            for each, item in zip(target.elts, items, strict=False):
                self._bind(each, item, env)

    def _type(self, node: ast.expr, env: dict[str, Any]) -> Any:
        """What an expression is, or None; notes the attributes that it reads."""
        if isinstance(node, ast.Name):
            return env[node.id] if node.id in env else self._global(node)
        if isinstance(node, ast.Attribute):
            return self._attribute(self._type(node.value, env), node)
        if isinstance(node, ast.Call):
            return self._call(node, env)
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            env = dict(env)
            for part in node.generators:
                self._bind(part.target, item_of(self._type(part.iter, env)), env)
                for condition in part.ifs:
                    self._type(condition, env)
            if isinstance(node, ast.DictComp):
                return self._type(node.key, env) and self._type(node.value, env) and None
            return Many(self._type(node.elt, env))
        if isinstance(node, ast.Lambda):
            return Result(self._type(node.body, env | self._parameters(node, None)))
        types = [self._type(n, env) for n in ast.iter_child_nodes(node) if isinstance(n, ast.expr)]
        if isinstance(node, ast.Subscript):
            return item_of(types[0])
        if isinstance(node, ast.BoolOp | ast.IfExp | ast.Await | ast.NamedExpr):
            return next((each for each in reversed(types) if each is not None), None)
        return None

    def _global(self, node: ast.Name) -> Any:
        found = innermost(self.names.get(node.id))
        if isinstance(found, FunctionType) and found.__module__.startswith(THEIRS):
            self.found.append((sys.modules[found.__module__], found.__qualname__, node.lineno))
        return found

    def _call(self, node: ast.Call, env: dict[str, Any]) -> Any:
        function = self._type(node.func, env)
        types = [self._type(arg, env) for arg in node.args]
        for keyword in node.keywords:
            self._type(keyword.value, env)
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name == "zip":
            return Many(tuple(item_of(each) for each in types))
        if name == "enumerate" and types:
            return Many((None, item_of(types[0])))
        if name in ("list", "sorted", "set", "filter", "reversed") and types:
            return Many(item_of(types[-1]))
        if isinstance(function, Result):
            return function.value
        if isinstance(function, FunctionType):
            return returned_by(function)
        return function if isinstance(function, type) else None

    def _attribute(self, owner: Any, node: ast.Attribute) -> Any:
        if isinstance(owner, ModuleType):
            if owner.__name__.startswith(THEIRS):
                self.found.append((owner, node.attr, node.lineno))
            return vars(owner).get(node.attr)
        if not isinstance(owner, type):
            return None
        theirs = [base for base in owner.__mro__ if _is_theirs(base)]
        ours = [base for base in owner.__mro__ if _is_ours(base)]
        named = any(node.attr in names_of(base) for base in theirs)
        known = node.attr.startswith("__") or any(_defines(base, node.attr) for base in ours)
        # What a class makes up when it is asked cannot be missed.
        if theirs and (named or not (known or hasattr(owner, "__getattr__"))):
            self.found.append((theirs[0], node.attr, node.lineno))
        return attribute_of(owner, node.attr)


def _defines(cls: type, name: str) -> bool:
    own = {*vars(cls), *vars(cls).get("__annotations__", ())}
    return name in own or any(name == attr for attr, _ in assigned(cls))
