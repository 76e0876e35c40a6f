"""From names and values to settings, from settings to a record, from settings to a function.

Two spellings name a leaf: its flat name (`temperature`) and its path (`sampling.temperature`). A
group's name takes names with values (`sampling: {temperature: 0}`).
"""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import update_wrapper
from typing import Any, Generic, TypeVar, get_args, get_origin

from surgeon import lineage
from surgeon.errors import BadInput
from surgeon.settings.schema import Leaf, annotation, is_settings, leaves, refusal

S = TypeVar("S")
R = TypeVar("R")


def bind(cls: type[S], values: Mapping[str, Any], what: str = "") -> S:
    """Settings of that class from names with values; raises `BadInput` for any that doesn't fit.

    `what` is who is asking, for the messages: the verb's name.
    """
    what = what or cls.__name__
    known = leaves(cls)
    tree: dict[str, Any] = {}
    for name, value in values.items():
        for leaf, part in _found(cls, known, name, value, what):
            _refuse_truth_value(leaf, part, what)
            place = tree
            for group in leaf.path[:-1]:
                place = place.setdefault(group, {})
            place[leaf.path[-1]] = part
    lacking = [
        leaf.name
        for leaf in known
        if leaf.default is dataclasses.MISSING and leaf.path[0] not in tree
    ]
    if lacking:
        raise BadInput(f"{what} lacks {', '.join(lacking)}.")
    try:
        return _build(cls, tree)
    except BadInput as error:
        raise BadInput(f"{what}: {error}") from None


def _found(cls: Any, known: list[Leaf], name: str, value: Any, what: str) -> list[tuple[Leaf, Any]]:
    """The leaves that a name stands for, each with its value."""
    is_group = any(".".join(leaf.path[:-1]) == name for leaf in known)
    if is_group and isinstance(value, Mapping):
        return [
            pair for key, part in value.items()
            for pair in _found(cls, known, f"{name}.{key}", part, what)
        ]  # fmt: skip
    for leaf in known:
        if name in (leaf.name, ".".join(leaf.path)):
            return [(leaf, value)]
    names = [leaf.name for leaf in known]
    near = difflib.get_close_matches(name, names, 1)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    raise BadInput(f"{what} has no parameter {name!r}.{meant} It takes: {', '.join(names)}.")


def _refuse_truth_value(leaf: Leaf, value: Any, what: str) -> None:
    """Python counts with True; nobody who writes `samples: true` means 1."""
    if isinstance(value, bool) and bool not in leaf.members and not _is_literal(leaf):
        raise BadInput(f"{what}: {refusal(leaf.name, value, leaf.kind)}")


def _is_literal(leaf: Leaf) -> bool:
    return any(True in get_args(m) for m in leaf.members if get_origin(m) is not None)


def _build(cls: type[S], tree: Mapping[str, Any], default: object = None) -> S:
    """An instance from nested names; what is left out comes from `default`, or the class."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # pyright: ignore[reportArgumentType]
        kind = annotation(cls, field.name)
        if field.name in tree and is_settings(kind):
            start = _group_default(field) if default is None else getattr(default, field.name)
            values[field.name] = _build(kind, tree[field.name], start)
        elif field.name in tree:
            values[field.name] = tree[field.name]
        elif default is not None:
            values[field.name] = getattr(default, field.name)
    return cls(**values)


def _group_default(field: Any) -> object:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def value_at(settings: object, path: tuple[str, ...]) -> object:
    """The value of one leaf."""
    for name in path:
        settings = getattr(settings, name)
    return settings


def record(settings: Any) -> dict[str, object]:
    """What `surgeon.json` keeps of settings: the recorded leaves by their flat names."""
    values = ((leaf, value_at(settings, leaf.path)) for leaf in leaves(type(settings)))
    return {leaf.name: value for leaf, value in values if leaf.is_recorded(value)}


class Verb(Generic[S, R]):
    """A verb's function: takes its settings, or their names as keywords.

    `rank(RankSettings(...))` and `rank(checkpoints, mini_set=..., samples=3)` are the same call;
    positional arguments go to the fields in their order.
    """

    __name__: str

    def __init__(self, settings: type[S], work: Callable[[S], R]):
        update_wrapper(self, work)
        self.settings, self.work = settings, work
        self.__signature__ = inspect.Signature([_parameter(leaf) for leaf in leaves(settings)])

    def __call__(self, *args: Any, **values: Any) -> R:
        if len(args) == 1 and not values and isinstance(args[0], self.settings):
            return self._run(args[0])
        name = getattr(self, "__name__", self.settings.__name__)
        fields = [field.name for field in dataclasses.fields(self.settings)]  # pyright: ignore
        if len(args) > len(fields):
            raise TypeError(f"{name} takes {len(fields)} arguments, {len(args)} were given")
        return self._run(bind(self.settings, dict(zip(fields, args, strict=False)) | values, name))

    def _run(self, settings: S) -> R:
        with lineage.reading():
            return self.work(settings)


def _parameter(leaf: Leaf) -> inspect.Parameter:
    P = inspect.Parameter
    return P(
        leaf.name,
        P.POSITIONAL_OR_KEYWORD if leaf.positional else P.KEYWORD_ONLY,
        default=P.empty if leaf.default is dataclasses.MISSING else leaf.default,
        annotation=leaf.kind,
    )


def verb(settings: type[S]) -> Callable[[Callable[[S], R]], Verb[S, R]]:
    """Decorate the function of a verb, which takes its settings as the only argument."""
    return lambda work: Verb(settings, work)
