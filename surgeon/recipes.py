"""Recipes: YAML lists of steps, each one verb with its settings.

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
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import MISSING
from pathlib import Path
from typing import Any, NamedTuple

from surgeon.console import aside, console, print_json
from surgeon.errors import BadInput
from surgeon.settings import bind, leaves, yaml_text
from surgeon.settings.verbs import VERBS, VerbRow


class RecipeStep(NamedTuple):
    """One verb of a recipe, and what its settings are to be."""

    verb: str
    parameters: dict[str, Any]

    def settings(self) -> object:
        """The verb's settings; raises `BadInput` for names and values that don't fit.

        A dry run needs no `out`: nothing is written there.
        """
        cls, values = known_verb(self.verb).load_settings(), self.parameters
        needed = any(leaf.name == "out" and leaf.default is MISSING for leaf in leaves(cls))
        if needed and values.get("dry_run") is True and "out" not in values:
            values = {**values, "out": str(_unused("OUT"))}
        return bind(cls, values, self.verb)

    def run(self, *, as_json: bool = False, indent: int | None = 2) -> None:
        """Do the step and print its result, for a person or as one JSON object."""
        row, settings = known_verb(self.verb), self.settings()
        ahead = row.forecast and getattr(settings, "dry_run", False)
        work = row.load_forecast() if ahead else row.load()
        if as_json:
            from surgeon import artifact

            with aside():
                result = work(settings)
            print_json({"verb": self.verb, **_object(artifact.told(result))}, indent=indent)
        else:
            result = work(settings)
            if ahead:
                from surgeon.traces import outlook

                outlook.show(result)
            else:
                row.show(result)
        if getattr(result, "interrupted", False):
            # The verb ended well, and whatever was to come after it isn't wanted any more.
            sys.exit(130)


def _unused(name: str) -> Path:
    """A path in the current directory where nothing is, nor an unfinished run."""
    path, n = Path(name), 2
    while path.exists() or path.with_name(path.name + ".partial").exists():
        path, n = Path(f"{name}-{n}"), n + 1
    return path


def _object(value: Any) -> dict[str, object]:
    return value if isinstance(value, dict) else {"result": value}


def run(path: str | Path, overrides: Sequence[str] = (), *, as_json: bool = False) -> None:
    """Run every step of a recipe in order, printing each result; as JSON on a line each.

    `overrides` are `verb.name=value` (or `name=value` where one step alone has the parameter).
    All steps are bound before the first one runs, so that a typo in the last costs nothing.
    """
    steps = override(load(path), overrides)
    for step in steps:
        step.settings()
    for n, step in enumerate(steps, 1):
        where = step.parameters.get("out", "")
        with aside() if as_json else nullcontext():
            title = f"[bold]{n}/{len(steps)} {step.verb}[/] [dim]{where}[/]"
            console().rule(title, align="left")
        step.run(as_json=as_json, indent=None)


def parameters_of(path: str | Path, verb: str) -> dict[str, object]:
    """The parameters of the only step of that verb in a recipe."""
    steps = [step for step in load(path) if step.verb == verb]
    if len(steps) != 1:
        raise BadInput(f"{path} has {len(steps)} steps of {verb}; --recipe needs exactly one.")
    return dict(steps[0].parameters)


def load(path: str | Path) -> list[RecipeStep]:
    """Read a recipe; raises `BadInput` naming the step that is no `verb: {name: value}`."""
    import yaml

    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path} is no file. Give a recipe, for example recipes/demo.yaml.")
    try:
        content = yaml_text.parse(path.read_text(encoding="utf-8"))
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
        steps.append(RecipeStep(str(verb), parameters))
    return steps


def known_verb(verb: str) -> VerbRow:
    """The verb of that name; raises `BadInput` that offers the nearest."""
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, 1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise BadInput(f"{verb!r} is no verb of a recipe.{meant} Verbs: {', '.join(VERBS)}.")
    return VERBS[verb]


def override(steps: list[RecipeStep], overrides: Sequence[str]) -> list[RecipeStep]:
    """Replace parameters by `verb.name=value` or `name=value` texts (values are YAML)."""
    steps = [RecipeStep(s.verb, dict(s.parameters)) for s in steps]
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
        return name.strip(), yaml_text.parse(value)
    except yaml.YAMLError as error:
        raise BadInput(f"--set {text}: {value!r} is not a YAML value.") from error
