"""Where the inputs of a run lie: by what the run wrote, else by the command that was typed."""

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from surgeon import recipes
from surgeon.checkpoint import hub_id, split_member
from surgeon.checkpoint.resolving import split_adapter
from surgeon.errors import BadInput
from surgeon.families.description import FILE as FAMILY
from surgeon.settings.verbs import VERBS

LARGEST = 20 << 20
"""Bytes of a JSON file that is searched for places."""
NAMING = ("checkpoint", "path", "spec")
"""Keys beside a digest that say what was digested."""


def places_of(made: Path, record: Mapping[str, Any]) -> dict[str, str]:
    """Input -> where it is, for those inputs of the run in `made` that are found."""
    bases = bases_of(made, record)
    digests = {digest: role for role, digest in (record.get("inputs") or {}).items()}
    found: dict[str, str] = {}
    for directory in (made, made.parent):
        # A candidate's parents are named by its family.
        if directory == made or (directory / FAMILY).is_file():
            for digest, specs in _digested(directory):
                role = digests.get(digest)
                if role is None or role in found:
                    continue
                for spec in specs:
                    there = locate(spec, [directory, *bases])
                    # What a run wrote itself is no ancestor of it.
                    if there is not None and not _inside(there, made):
                        found[role] = there
                        break
    given = {**(record.get("arguments") or {}), **parameters(made, record, bases)}
    for role in record.get("inputs") or {}:
        if role not in found and (there := _by_name(role, given, bases)):
            found[role] = there
    return found


def bases_of(made: Path, record: Mapping[str, Any]) -> list[Path]:
    """The directories that a run's paths may be relative to, the likeliest first."""
    recorded = record.get("directory")
    there = [made.parent / recorded] if recorded else []
    return [Path(os.path.normpath(p)) for p in (*there, Path.cwd(), *list(made.parents)[:4])]


def locate(spec: str, bases: list[Path]) -> str | None:
    """A spec with its paths as they are seen from here; None where nothing is there."""
    if spec.startswith("builtin:") and "+" not in spec:
        return spec
    for base in bases:
        path = base / Path(spec).expanduser()
        if spec and path.exists():
            return seen(path)
    place, member = split_member(spec)
    if member:
        there = locate(place, bases)
        return None if there is None else f"{there}#{member}"
    if "+" in spec:
        parts = [locate(part, bases) for part in split_adapter(spec)]
        return None if None in parts else "+".join(map(str, parts))
    return spec if hub_id(spec) else None


def seen(path: Path) -> str:
    """A path from the current directory where it is below, else the whole."""
    path, here = Path(os.path.normpath(path.absolute())), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _inside(place: str, made: Path) -> bool:
    return Path(split_member(place)[0]).resolve().is_relative_to(made.resolve())


def _digested(directory: Path) -> Iterator[tuple[str, list[str]]]:
    """(digest, specs) of every record in a directory's JSON files that says both."""
    for file in sorted(directory.glob("*.json")):
        if file.stat().st_size > LARGEST or file.name.startswith("tokenizer"):
            continue
        try:
            waiting: list[object] = [json.loads(file.read_text(encoding="utf-8"))]
        except (ValueError, RecursionError):
            continue  # not ours to complain about: what is read here is only searched
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict):
                digest = value.get("digest")
                specs = [value[k] for k in NAMING if isinstance(value.get(k), str)]
                if isinstance(digest, str) and specs:
                    yield digest, specs
                waiting += value.values()
            elif isinstance(value, list):
                waiting += value[:1000]


def _by_name(role: str, given: Mapping[str, Any], bases: list[Path]) -> str | None:
    """The place of an input whose name is a parameter's, or that of what a parameter names."""
    named = given.get({"labelled task": "task", "tuned": "checkpoint"}.get(role, role))
    named = given.get(role.replace(" ", "_")) if named is None else named
    if isinstance(named, str) and (there := locate(named, bases)):
        return there
    bare = role.rpartition(" ")[2]
    for value in given.values():
        for spec in value if isinstance(value, list | tuple) else (value,):
            if not isinstance(spec, str) or not spec:
                continue
            ends = {part.rstrip("/").rpartition("/")[2] for part in (spec, *spec.split("+"))}
            ends |= {spec.removeprefix("builtin:"), spec.rpartition("#")[2]}
            if bare in ends and (there := locate(spec, bases)):
                return there
    return None


def parameters(made: Path, record: Mapping[str, Any], bases: list[Path]) -> Mapping[str, object]:
    """What the command that made a directory gave its verb: parameter -> value."""
    words = shlex.split(record.get("command") or "")[1:]
    verb = str(record.get("verb"))
    try:
        if words[:1] == ["run"]:
            return _of_recipe(words[1:], verb, made, bases)
        name = verb.replace("-", " ").split() if verb.startswith("trigger-") else [verb]
        if words[: len(name)] != name:
            return {}
        from surgeon.cli import Command

        context = Command(verb, verb, VERBS[verb]).make_context(
            verb, words[len(name) :], resilient_parsing=True
        )
    except (click.ClickException, BadInput):
        return {}  # of a version whose options were others: then nothing is known by name
    return {name: value for name, value in context.params.items() if value}


def _of_recipe(words: list[str], verb: str, made: Path, bases: list[Path]) -> Mapping[str, object]:
    """The parameters of a recipe's step that wrote a directory."""
    file = next((there for w in words if w[:1] != "-" and (there := locate(w, bases))), None)
    if file is None or not Path(file).is_file():
        return {}
    overrides = [value for option, value in pairwise(words) if option == "--set"]
    for step in recipes.override(recipes.load(file), overrides):
        out = str(step.parameters.get("out", ""))
        if step.verb == verb and any((base / out).resolve() == made.resolve() for base in bases):
            return step.parameters
    return {}
