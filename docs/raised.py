"""What source code says without being run: the errors that it raises, and the modules that a stage is made of."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from orrery.pipeline import cli, errors
from orrery.pipeline.config.load import discover_stages
from orrery.pipeline.stage import Stage


@dataclass(frozen=True)
class Raised:
    """One error that a module can raise."""

    where: str
    """Function or method, as Class.method."""
    error: str
    message: str
    """Its text, with {name} for what is filled in."""


@functools.cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def raised_errors(path: Path) -> tuple[Raised, ...]:
    """Return the errors for users that a source file raises, in order."""
    known = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}

    def visit(node: ast.AST, where: str) -> Iterator[Raised]:
        for child in ast.iter_child_nodes(node):
            inner = where
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inner = f"{where}.{child.name}".strip(".")
            call = child.exc if isinstance(child, ast.Raise) else None
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in known and call.args:
                message = " ".join(_template(call.args[0]).split())
                if re.sub(r"\{[^}]*\}|\W", "", message):  # says something of its own
                    yield Raised(where, call.func.id, message)
            yield from visit(child, inner)

    return tuple(visit(_parsed(path), ""))


def _template(node: ast.expr) -> str:
    """The text that an expression makes, with {name} for what is only known later."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(map(_template, values))
        case ast.FormattedValue(value=value):
            return _template(value) if isinstance(value, ast.IfExp | ast.Constant) else "{" + _named(value) + "}"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _template(left) + _template(right)
        case ast.IfExp(body=body, orelse=other):
            return " / ".join(filter(None, (_template(body), _template(other))))
        case _:
            return "{" + _named(node) + "}"


def _named(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Call(func=ast.Attribute(attr="join"), args=[argument]) | ast.Call(args=[argument]):
            return _named(argument)
        case _:
            return "..."


def used_modules(stage: type[Stage]) -> dict[str, Path]:
    """{name: file} of the modules of stages and datasets that a stage is made of, other stages left out."""
    roots = {f"orrery.{part}": Path(cli.__file__).parents[1] / part for part in ("stages", "datasets")}
    found: dict[str, Path] = {}
    waiting = [stage.__module__]
    while waiting:
        name = waiting.pop()
        path = _source(name, roots)
        if path is None or name in found:
            continue
        found[name] = path
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.walk(_parsed(path)):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], node.module or ""])
                waiting += [base.strip("."), *(f"{base.strip('.')}.{alias.name}" for alias in node.names)]
    own = {cls.__module__ for cls in discover_stages().values()}
    return {name.removeprefix("orrery."): path for name, path in sorted(found.items()) if name not in own}


def _source(name: str, roots: Mapping[str, Path]) -> Path | None:
    for root, folder in roots.items():
        if name.startswith(f"{root}."):
            path = folder.joinpath(*name.removeprefix(f"{root}.").split("."))
            return next((one for one in (path.with_suffix(".py"), path / "__init__.py") if one.is_file()), None)
    return None
