"""What a settings class is made of: its decorator, its kinds of values, and its leaves.

A settings class is a frozen pydantic dataclass. Its field docstrings are the help, its annotations
carry choices and ranges, its defaults stand nowhere else. A field may be another settings class, a
*group*: `sampling: Sampling`. From the *leaves* of a class come the parameters of the verb's
function, the names of a recipe, the options of the command, the record in `surgeon.json`, and the
pages docs/verbs/.
"""

import dataclasses
import types
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from functools import wraps
from pathlib import Path, PurePath
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
)

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BeforeValidator, ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from surgeon.errors import BadInput

T = TypeVar("T")
CONFIG = ConfigDict(
    use_attribute_docstrings=True,
    extra="forbid",
    coerce_numbers_to_str=True,
    allow_inf_nan=False,
    arbitrary_types_allowed=False,
)

# --- markers: what a field is beside its value ----------------------------------------------------


class Metavar(NamedTuple):
    """What the command's help shows for the value: FILE, DIR, URL#MODEL."""

    text: str


class Switches(NamedTuple):
    """Options of their own instead of `--name VALUE`: option name -> (value, help)."""

    options: dict[str, tuple[Any, str]]
    named: bool = False
    """Whether there is `--name VALUE` too, for other values."""


class Marker(Enum):
    """What else is true of a field."""

    POSITIONAL = "an argument of the command, not an option"
    RECORDED_WHERE_SET = "no part of the record while empty: runs made before it existed lack it"
    UNRECORDED = "no part of what makes a run this run: it changes no number, or has a digest"
    SHARED = "groups that have a field of this name get its value, and don't offer it themselves"
    SHORTHAND = "its flat name is its group's: `tuning=lora` sets `tuning.weights`"


POSITIONAL, RECORDED_WHERE_SET, UNRECORDED, SHARED, SHORTHAND = Marker

# --- kinds of values ------------------------------------------------------------------------------

Count = Annotated[int, Ge(1)]
"""At least one."""
Number = Annotated[int, Ge(0)]
"""None or more."""
Share = Annotated[float, Ge(0), Le(1)]
Part = Annotated[float, Gt(0), Lt(1)]
"""A share that is neither nothing nor all."""
Probability = Annotated[float, Gt(0), Le(1)]
Amount = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
_PATH = BeforeValidator(lambda v: str(v) if isinstance(v, Path) else v)
File = Annotated[str, _PATH, Metavar("FILE")]
Directory = Annotated[str, _PATH, Metavar("DIR")]
Out = Annotated[Path, Metavar("DIR"), UNRECORDED]
Many = Annotated[
    tuple[T, ...], BeforeValidator(lambda v: v if isinstance(v, list | tuple) else (v,))
]
"""A list, or one item that stands for a list of one."""

# --- the decorator --------------------------------------------------------------------------------


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make a class of annotated fields a settings class.

    Its constructor takes keywords and raises `BadInput` for a value outside its kind. Checks that
    concern several fields stand in `__post_init__` and raise `BadInput` too.
    """
    made: Any = pydantic_dataclass(cls, frozen=True, kw_only=True, config=CONFIG)
    construct = made.__init__

    @wraps(construct)
    def checked(self: Any, *args: Any, **values: Any) -> None:
        values = {name: _spelled(value) for name, value in values.items()}
        try:
            construct(self, *args, **values)
        except ValidationError as error:
            raise BadInput(_sentence(made, error, values)) from None
        for name in shared_names(made):
            for group in _groups(made):
                if name in names_of(type(getattr(self, group))):
                    # Frozen for everybody else: the instance isn't out of its constructor yet.
                    part = dataclasses.replace(getattr(self, group), **{name: getattr(self, name)})
                    object.__setattr__(self, group, part)

    made.__init__ = checked
    return made


def _spelled(value: Any) -> Any:
    """A path as text, which pydantic wants where a field isn't a path itself."""
    if isinstance(value, PurePath):
        return str(value)
    return type(value)(map(_spelled, value)) if type(value) in (list, tuple) else value


def shared_names(cls: Any) -> list[str]:
    """The fields whose values the groups share."""
    fields = cls.__pydantic_fields__.items()
    return [name for name, field in fields if SHARED in field.metadata]


def _groups(cls: Any) -> list[str]:
    return [name for name in names_of(cls) if is_settings(annotation(cls, name))]


def is_settings(kind: Any) -> bool:
    """Whether a field of this annotation is a group."""
    return isinstance(kind, type) and hasattr(kind, "__pydantic_fields__")


def _sentence(cls: Any, error: ValidationError, values: Mapping[str, Any]) -> str:
    """The first thing that is wrong, in the idiom of the house."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    if first["type"] == "value_error" and not path:
        return str(first["ctx"]["error"])  # pyright: ignore[reportTypedDictNotRequiredAccess]
    name = path[0] if path else cls.__name__
    if first["type"] == "unexpected_keyword_argument":
        return f"{cls.__name__} has no setting {name!r}. It takes: {', '.join(names_of(cls))}."
    if name not in values:
        return f"{cls.__name__} lacks {name}."
    field = cls.__pydantic_fields__[name]
    kind = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return refusal(name, values[name], kind)


def refusal(name: str, value: Any, kind: Any) -> str:
    """`found NAME = VALUE, expected ...`."""
    shown = value if isinstance(value, str) else repr(value)
    return f"found {name} = {shown}, expected {expectation(kind)}."


def names_of(cls: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


# --- what is expected, in words -------------------------------------------------------------------

PLAIN_KINDS: dict[Any, str] = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path",
}  # fmt: skip


def expectation(kind: Any) -> str:
    """The values a kind takes, in words: `a whole number of at least 1`."""
    text, limits = _plain_kind(kind), span(kind)
    return f"{text}{' of' if limits.startswith('at') else ''} {limits}" if limits else text


def _plain_kind(kind: Any) -> str:
    if isinstance(kind, type) and kind in PLAIN_KINDS:
        return PLAIN_KINDS[kind]
    origin, members = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _plain_kind(members[0])
    if origin is Literal:
        return f"one of: {', '.join(map(str, members))}"
    if origin in (Union, types.UnionType):
        return " or ".join(expectation(m) for m in members if m is not type(None))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "names with values: {name: value}"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        inner = [m for m in members if m is not Ellipsis]
        if len(inner) > 1:
            return f"a list of {len(inner)}: {'; '.join(map(expectation, inner))}"
        return f"a list, each item {expectation(inner[0])}"
    return getattr(kind, "__name__", str(kind))


def span(kind: Any) -> str:
    """The range of a kind in words, empty where it has none: `above 0 and at most 1`."""
    words = {Ge: "at least", Gt: "above", Le: "at most", Lt: "below"}
    found = []
    for limit in get_args(kind)[1:] if get_origin(kind) is Annotated else ():
        if type(limit) in words:
            (bound,) = dataclasses.astuple(limit)
            found.append(f"{words[type(limit)]} {bound:g}")
    return " and ".join(found)


# --- leaves ---------------------------------------------------------------------------------------


class Leaf(NamedTuple):
    """One value of a settings class, in itself or in one of its groups."""

    path: tuple[str, ...]
    """Where it stands: `("sampling", "samples")`."""
    name: str
    """Its flat name: the bare one, `group_name` where an earlier field has the bare one already,
    or the group's name alone for the group's shorthand."""
    kind: Any
    """Its annotation, with range and markers."""
    default: Any
    """`dataclasses.MISSING` where it must be given."""
    help: str
    group: Any
    """The settings class that it belongs to."""

    @property
    def extra(self) -> tuple[Any, ...]:
        """Range and markers of the annotation, those of `Out` in `Out | None` too."""
        return _metadata(self.kind)

    def marker(self, marker: type[T]) -> T | None:
        """The field's marker of this type."""
        return next((m for m in self.extra if isinstance(m, marker)), None)

    @property
    def positional(self) -> bool:
        return POSITIONAL in self.extra

    @property
    def recorded(self) -> bool:
        return UNRECORDED not in self.extra

    def is_recorded(self, value: object) -> bool:
        """Whether the record of a run holds this value."""
        return self.recorded and (RECORDED_WHERE_SET not in self.extra or bool(value))

    @property
    def members(self) -> list[Any]:
        """The types it takes, None left out: `[int]` for `Count | None`."""
        kind = get_args(self.kind)[0] if get_origin(self.kind) is Annotated else self.kind
        inner = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
        bare = [get_args(m)[0] if get_origin(m) is Annotated else m for m in inner]
        return [m for m in bare if m is not type(None)]

    @property
    def many(self) -> bool:
        origin = get_origin(self.members[0])
        return isinstance(origin, type) and issubclass(origin, Sequence)


def _metadata(kind: Any) -> tuple[Any, ...]:
    if get_origin(kind) is Annotated:
        inner, *extra = get_args(kind)
        return (*extra, *_metadata(inner))
    members = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else ()
    return tuple(extra for member in members for extra in _metadata(member))


def leaves(cls: Any) -> list[Leaf]:
    """Every value of a settings class, groups unfolded, in the order of the fields."""
    found: list[Leaf] = []
    taken = {f.name for f in dataclasses.fields(cls) if not is_settings(annotation(cls, f.name))}
    shared = shared_names(cls)
    for leaf in _walk(cls, (), None):
        bare = leaf.path[-1]
        if len(leaf.path) == 1:
            found.append(leaf)
            continue
        if bare in shared:
            continue
        name = bare if bare not in taken else "_".join(leaf.path[-2:])
        if SHORTHAND in leaf.extra:
            name = leaf.path[-2]
        taken.add(name)
        found.append(leaf._replace(name=name))
    return found


def annotation(cls: Any, name: str) -> Any:
    """The type of a field, range and markers left out."""
    return cls.__pydantic_fields__[name].annotation


def _walk(cls: Any, path: tuple[str, ...], default: Any) -> Iterator[Leaf]:
    for field in dataclasses.fields(cls):
        info = cls.__pydantic_fields__[field.name]
        value = default_of(field) if default is None else getattr(default, field.name)
        here = (*path, field.name)
        if is_settings(info.annotation):
            yield from _walk(info.annotation, here, value)
            continue
        kind = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
        text = " ".join((info.description or "").split())
        yield Leaf(here, field.name, kind, value, text, cls)


def default_of(field: Any) -> object:
    """A field's default, made where it has a factory; `dataclasses.MISSING` where it has none.

    Pydantic keeps a default in its own `FieldInfo` where the field was declared with one.
    """
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
