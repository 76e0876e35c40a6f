"""Recipes: YAML lists of steps, each one verb with its parameters, bound through the signature.

    - merge-sweep:
        a: builtin:instruct
        b: builtin:thinking
        out: runs/demo/family
    - rank:
        checkpoints: runs/demo/family
        ...

Steps are joined by paths, which are relative to the current directory. A step whose output carries
the same arguments and input digests is skipped; one whose output differs stops the run.
"""

import difflib
import importlib
import inspect
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Union, get_args, get_origin

from surgeon import settings
from surgeon.errors import BadInput
from surgeon.settings.verbs import VERBS as ROWS
from surgeon.settings.verbs import Row


class Verb(NamedTuple):
    """A command: where its function is, and what prints its result."""

    module: str
    function: str
    show: str = "show"

    def load(self) -> Callable[..., Any]:
        """Import the function that does the work."""
        return getattr(importlib.import_module(self.module), self.function)

    def print(self, result: Any) -> None:
        """Print the result for a person at a terminal."""
        getattr(importlib.import_module(self.module), self.show)(result)


VERBS = {
    "merge-sweep": Verb("surgeon.merge", "sweep"),
    "evaluate": Verb("surgeon.evaluate", "evaluate"),
    "transplant": Verb("surgeon.transplant", "transplant"),
}


class Step(NamedTuple):
    """One bound call of a recipe."""

    verb: str
    parameters: dict[str, Any]


def run(path: str | Path, overrides: Sequence[str] = ()) -> None:
    """Run every step of a recipe in order, printing each result.

    `overrides` are `verb.name=value` (or `name=value` where one step alone has the parameter).
    All steps are bound before the first one runs, so that a typo in the last costs nothing.
    """
    from rich.console import Console

    steps = override(load(path), overrides)
    for step in steps:
        bound_step(step)
    console = Console(highlight=False)
    for n, step in enumerate(steps, 1):
        where = step.parameters.get("out", "")
        console.rule(f"[bold]{n}/{len(steps)} {step.verb}[/] [dim]{where}[/]", align="left")
        call(step)


def bound_step(step: Step) -> Any:
    """The settings of a step; raises `BadInput` for names and values that don't fit."""
    verb = known_verb(step.verb)
    if isinstance(verb, Row):
        return settings.bind(verb.load_settings(), step.parameters, step.verb)
    return bind(step)


def call(step: Step) -> None:
    """Run one step and print its result."""
    row, found = known_verb(step.verb), bound_step(step)
    if isinstance(row, Row):
        result = row.load()(found)
        row.show(result)
        if getattr(result, "interrupted", False):
            # The verb ended well, and whatever was to come after it isn't wanted any more.
            sys.exit(130)
    else:
        row.print(row.load()(**found.parameters))


def parameters_of(path: str | Path, verb: str) -> dict[str, Any]:
    """The parameters of the only step of that verb in a recipe."""
    steps = [step for step in load(path) if step.verb == verb]
    if len(steps) != 1:
        raise BadInput(f"{path} has {len(steps)} steps of {verb}; --recipe needs exactly one.")
    return dict(steps[0].parameters)


def load(path: str | Path) -> list[Step]:
    """Read a recipe; raises `BadInput` naming the step that is no `verb: {name: value}`."""
    import yaml

    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path} is no file. Give a recipe, for example recipes/demo.yaml.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if isinstance(content, dict):
        content = [{verb: parameters} for verb, parameters in content.items()]
    if not isinstance(content, list) or not content:
        raise BadInput(f"{path} holds no steps. A recipe is a list of `verb: {{name: value}}`.")
    steps = []
    for n, entry in enumerate(content, 1):
        if not isinstance(entry, dict) or len(entry) != 1:
            raise BadInput(f"{path}: step {n} must be one `verb: {{name: value}}`, is {entry!r}.")
        ((verb, parameters),) = entry.items()
        if not isinstance(parameters, dict) or not all(isinstance(k, str) for k in parameters):
            raise BadInput(f"{path}: step {n} ({verb}) must map parameter names to values.")
        known_verb(str(verb))
        steps.append(Step(str(verb), parameters))
    return steps


def known_verb(verb: str) -> "Row | Verb":
    """The verb of that name; raises `BadInput` that offers the nearest."""
    if verb in ROWS:
        return ROWS[verb]
    if verb not in VERBS:
        names = [*ROWS, *VERBS]
        near = difflib.get_close_matches(verb, names, 1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise BadInput(f"{verb!r} is no verb of a recipe.{meant} Verbs: {', '.join(names)}.")
    return VERBS[verb]


def override(steps: list[Step], overrides: Sequence[str]) -> list[Step]:
    """Replace parameters by `verb.name=value` or `name=value` texts (values are YAML)."""
    steps = [Step(s.verb, dict(s.parameters)) for s in steps]
    for text in overrides:
        name, value = parse_setting(text)
        verb, _, bare = name.rpartition(".")
        hits = [s for s in steps if (s.verb == verb if verb else bare in s.parameters)]
        if not hits:
            raise BadInput(f"--set {text}: no step of the recipe has it. Use verb.name=value.")
        if not verb and len(hits) > 1:
            verbs = ", ".join(dict.fromkeys(f"{s.verb}.{bare}" for s in hits))
            raise BadInput(f"--set {text}: several steps have {bare}. Say which: {verbs}.")
        for step in hits:
            step.parameters[bare] = value
    return steps


def parse_setting(text: str) -> tuple[str, Any]:
    """`name=value` -> the name and its YAML value."""
    import yaml

    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise BadInput(f"--set {text}: expected name=value.")
    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise BadInput(f"--set {text}: {value!r} is not a YAML value.") from error


def bind(step: Step) -> Step:
    """Check a step's parameters against the verb's signature, names and types both."""
    signature = inspect.signature(VERBS[step.verb].load())
    return Step(step.verb, bound(step.verb, signature, step.parameters))


def bound(verb: str, signature: inspect.Signature, parameters: dict[str, Any]) -> dict[str, Any]:
    """`parameters` with values of the annotated types; raises `BadInput` for any that don't fit."""
    known = signature.parameters
    for name in parameters:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            raise BadInput(
                f"{verb} has no parameter {name!r}.{meant} It takes: {', '.join(known)}."
            )
    missing = [name for name, p in known.items() if p.default is p.empty and name not in parameters]
    if missing:
        raise BadInput(f"{verb} lacks {', '.join(missing)}.")
    return {
        name: fitted(f"{verb}: {name}", known[name].annotation, value)
        for name, value in parameters.items()
    }


def fitted(what: str, annotation: Any, value: Any) -> Any:
    """`value` as the annotated type: an int where a float is wanted, one item where a list is."""
    origin, members = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        for member in members:
            if member is type(None) and value is None:
                return None
        plain = [m for m in members if m is not type(None)]
        for member in plain:
            if isinstance(member, type) and type(value) is member:
                return value
        for member in plain:
            try:
                return fitted(what, member, value)
            except BadInput:
                continue
        names = " or ".join(getattr(m, "__name__", str(m)) for m in members)
        raise BadInput(f"{what} is {value!r}, expected {names}.")
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence):
        values = value if isinstance(value, list | tuple) else [value]
        return [fitted(what, members[0], v) for v in values] if members else list(values)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise BadInput(f"{what} is {value!r}, expected names with values: {{name: value}}.")
        return {
            fitted(what, members[0], k): fitted(f"{what}.{k}", members[1], v)
            for k, v in value.items()
        }
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if annotation is Path and isinstance(value, str):
        return Path(value)
    if annotation is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(annotation, type):
        wrong_bool = isinstance(value, bool) and annotation is not bool
        if wrong_bool or not isinstance(value, annotation):
            raise BadInput(
                f"{what} is {value!r} ({type(value).__name__}), expected {annotation.__name__}."
            )
    return value
