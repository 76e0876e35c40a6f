"""Typed JSON files: what a verb writes is what the next one reads, and a reader knows its fields.

    @artifact("ranking.json", version=1)
    class Ranking: ...

makes a frozen dataclass that `write` stores under that name and `read` brings back, checked. The
file says its `format`; a file without one is of version 1. A class with a static method
`upgrade(content, version)` reads older formats too. Fields named `out` and `already` belong to the
run that returned the value and aren't stored.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from surgeon import lineage
from surgeon.errors import BadInput

A = TypeVar("A")
FORMAT = "format"
CONFIG = ConfigDict(extra="ignore", ser_json_inf_nan="null")
Out = Annotated[Path, Field(exclude=True)]
"""The directory that holds the artifact."""
Already = Annotated[bool, Field(exclude=True)]
"""Whether the run was finished before, so that nothing was computed."""


def plain_name(name: str) -> str:
    """The name itself; raises ValueError for one that no file in a directory can have."""
    if not name or set(name) & set("/\\\0") or name in (".", "..") or len(name.encode()) > 255:
        raise ValueError(f"{name[:40]!r} is no plain file name")
    return name


FileName = Annotated[str, AfterValidator(plain_name)]
"""A name that a file or directory inside of an artifact has: whoever wrote the artifact, none that
leads out of it."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def part(cls: type[A]) -> type[A]:
    """Make a class of annotated fields a frozen record that may stand inside an artifact."""
    made: Any = pydantic_dataclass(cls, frozen=True, kw_only=True, config=CONFIG)
    return made


@dataclass_transform(frozen_default=True, kw_only_default=True)
def artifact(file: str, *, version: int = 1) -> Callable[[type[A]], type[A]]:
    """Make a class of annotated fields an artifact that is stored as `file`."""

    def decorate(cls: type[A]) -> type[A]:
        made: Any = part(cls)
        made.FILE, made.VERSION = file, version
        return made

    return decorate


def jsonable(value: Any) -> Any:
    """The JSON of an artifact or a part: what isn't a number becomes null."""
    return json.loads(TypeAdapter(type(value)).dump_json(value))


def told(result: Any) -> object:
    """The JSON of whatever a verb returns: an artifact with where it is and whether it was there
    before, or a tuple or dataclass by its fields. A result with a method `told` says itself."""
    if hasattr(result, "told"):
        return told(result.told())
    if hasattr(result, "__pydantic_fields__"):
        beside = {
            n: told(v) for n in ("out", "already") if (v := getattr(result, n, None)) is not None
        }
        return {**beside, **jsonable(result)}
    if hasattr(result, "_asdict"):
        return told(result._asdict())
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        fields = dataclasses.fields(result)
        return {field.name: told(getattr(result, field.name)) for field in fields}
    if isinstance(result, Mapping):
        return {str(key): told(value) for key, value in result.items()}
    if isinstance(result, list | tuple | set | frozenset):
        return [told(value) for value in result]
    if callable(listed := getattr(result, "tolist", None)):  # numpy's numbers, arrays, tensors
        return told(listed())
    if isinstance(result, float):
        return result if math.isfinite(result) else None
    return result if isinstance(result, bool | int | str | None) else str(result)


def write(directory: str | Path, value: Any) -> None:
    """Store an artifact in a directory, atomically, its format first."""
    content = {FORMAT: type(value).VERSION, **jsonable(value)}
    lineage.write_json(Path(directory) / type(value).FILE, content)


def read(kind: type[A], directory: str | Path) -> A:
    """The artifact of that kind in a directory, or in the file that is given.

    Raises `BadInput` where it is missing or damaged, or of a format this version doesn't know.
    """
    path = Path(directory)
    file = path / kind.FILE if path.is_dir() else path  # pyright: ignore[reportAttributeAccessIssue]
    return parse(kind, lineage.read_object(file), file)


def parse(kind: type[A], content: dict[str, Any], file: Path) -> A:
    """An artifact from the JSON object of `file`."""
    version, newest = content.get(FORMAT, 1), kind.VERSION  # pyright: ignore[reportAttributeAccessIssue]
    upgrade = getattr(kind, "upgrade", None)
    if upgrade and isinstance(version, int) and version < newest:
        try:
            content, version = upgrade(content, version), newest
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            raise BadInput(
                f"{file}: found format {version} with other content than it has ({error!r:.80}): "
                "make it again."
            ) from error
    if version != newest:
        raise BadInput(
            f"{file}: found format {json.dumps(version)}, expected {newest}. It was written by "
            "another version of surgeon: make it again with this one."
        )
    fields = {f.name for f in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    own = {"out": file.parent} if "out" in fields else {}
    try:
        return TypeAdapter(kind).validate_python({**content, **own})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadInput(
            f"{file}: found {where or 'its content'} unusable ({first['msg']}). The file is "
            "damaged: make it again."
        ) from error


def once(out: str | Path, kind: type[A], work: Callable[[Path], A], *, run: lineage.Run) -> A:
    """The artifact of a run: read where `out` holds this very run, else made by `work`.

    `work` gets the directory to write in (it resumes what a killed run left there) and returns the
    artifact, which is written and given its final name. Raises `BadInput` as `begin` does.
    """
    out = Path(out)
    partial = lineage.begin(out, **run._asdict())
    if partial is None:
        return dataclasses.replace(read(kind, out), already=True)  # pyright: ignore
    try:
        value = work(partial)
        write(partial, value)
        lineage.finish(partial, out)
    finally:
        lineage.let_go(partial)
    return dataclasses.replace(value, out=out)  # pyright: ignore
