"""Writes docs/formats.md from the types of what is written: `make reference`."""

import ast
import dataclasses
import functools
import importlib
import inspect
import itertools
import pkgutil
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import surgeon
from surgeon.traces import Trace

PAGE = Path(__file__).with_name("formats.md")
HEAD = Path(__file__).with_name("formats.head.md")
NOT_STORED = {"out", "already"}


def text() -> str:
    """The page: what was written by hand, then a table for each typed JSON file."""
    parts = [HEAD.read_text(encoding="utf-8").rstrip(), ""]
    parts += ["## Lines of traces", "", *table(Trace), ""]
    for kind in artifacts():
        parts += [
            f"## {kind.FILE}",
            "",
            f"{summary(kind)} Format {kind.VERSION}.",
            "",
            *table(kind),
        ]
        for inner in inside(kind, {kind}):
            parts += ["", f"**{inner.__name__}**: {summary(inner)}", "", *table(inner)]
        parts.append("")
    return "\n".join(parts)


def artifacts() -> list[Any]:
    """Every typed JSON file of the package, by name."""
    found: dict[str, Any] = {}
    for module in pkgutil.walk_packages(surgeon.__path__, "surgeon."):
        if module.name.endswith("__main__") or "vllm" in module.name:
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(value) and {"FILE", "VERSION"} <= vars(value).keys():
                found[getattr(value, "FILE")] = value  # noqa: B009 - only its type is known
    return [found[name] for name in sorted(found)]


def inside(kind: Any, seen: set[Any]) -> Iterator[Any]:
    """The records that stand inside one, each once."""
    for hint in typing.get_type_hints(kind).values():
        for inner in records(hint):
            if inner not in seen:
                seen.add(inner)
                yield inner
                yield from inside(inner, seen)


def records(hint: Any) -> Iterator[Any]:
    """The records that an annotation names."""
    if inspect.isclass(hint) and dataclasses.is_dataclass(hint):
        yield hint
    for argument in typing.get_args(hint):
        yield from records(argument)


def summary(kind: Any) -> str:
    """The first paragraph of a class's docstring."""
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())


def table(kind: Any) -> list[str]:
    """A record's fields."""
    rows = ["| key | value | |", "|---|---|---|"]
    hints, said = typing.get_type_hints(kind), sayings(kind)
    for field in dataclasses.fields(kind):
        if field.name not in NOT_STORED:
            cells = [f"`{field.name}`", spelled(hints[field.name]), said.get(field.name, "")]
            rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return rows


def spelled(hint: Any) -> str:
    """A type as it stands in JSON."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    plain = {str: "text", int: "whole number", float: "number", bool: "true or false",
             type(None): "null", Path: "a path", Any: "any"}  # fmt: skip
    if hint in plain:
        return plain[hint]
    if origin is typing.Literal:
        return ", ".join(str(value) for value in arguments)
    if origin is dict or (inspect.isclass(origin) and issubclass(origin, typing.Mapping)):
        return f"object: {spelled(arguments[0])} -> {spelled(arguments[1])}"
    if origin is tuple and arguments[-1] is not Ellipsis:
        return "[" + ", ".join(map(spelled, arguments)) + "]"
    if origin in (list, tuple):
        return f"list, each {spelled(arguments[0])}"
    if arguments:
        return " or ".join(dict.fromkeys(map(spelled, arguments)))
    return getattr(hint, "__name__", "any")


@functools.cache
def sayings(kind: Any) -> dict[str, str]:
    """Field -> the docstring below it, those of base classes too."""
    found: dict[str, str] = {}
    for cls in reversed(kind.__mro__[:-1]):
        body = tree(inspect.getsourcefile(cls) or "").get(cls.__name__)
        if body is None:
            continue
        for field, after in itertools.pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                found[field.target.id] = " ".join(str(after.value.value).split())
    return found


@functools.cache
def tree(file: str) -> dict[str, list[ast.stmt]]:
    """Class -> its body, of a source file."""
    parsed = ast.parse(Path(file).read_text(encoding="utf-8"))
    return {node.name: node.body for node in ast.walk(parsed) if isinstance(node, ast.ClassDef)}


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
