"""What every verb takes: checkpoints on disk, and members of families."""

import glob
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from surgeon import lineage, progress
from surgeon.checkpoint import (
    Checkpoint,
    adapter_alone,
    hub_id,
    is_adapter,
    read_json,
    resolve,
    split_member,
)
from surgeon.errors import BadInput
from surgeon.families import candidate_files
from surgeon.families.cosines import with_cosines
from surgeon.families.description import FILE, Candidate, Family, label

STEP = re.compile(r"(?:.*[^a-z])?(?:checkpoint|ckpt|step|iter)[-_]?(\d+)", re.IGNORECASE)
"""A directory's name that says its training step."""


class Subject(NamedTuple):
    """One checkpoint to be ranked or evaluated: on disk, or a virtual member of a family."""

    name: str
    """Short, safe as a file name, and unique among the subjects of a run."""
    spec: str
    """What names it on a command line: a directory, a hub id, `family.json#name`."""
    ratio: float | None
    digest: str
    checkpoint: Checkpoint | None
    """Where it lies on disk; None for a virtual candidate."""
    family: Family | None = None
    candidate: Candidate | None = None
    run: str = ""
    """The directory of the training run that it is a checkpoint of; empty for any other."""
    step: int | None = None
    """Its training step."""

    @property
    def source(self) -> Checkpoint:
        """The checkpoint that has its shape and vocabulary: its own, or its family's."""
        if self.checkpoint is not None:
            return self.checkpoint
        if self.family is None:
            raise ValueError(f"{self.spec} has neither a directory nor a family")
        return self.family.source("tokenizer")


def subjects(specs: list[str]) -> list[Subject]:
    """What the user named, families spread into their candidates, each name once.

    A spec is a checkpoint directory, a hub id, `base+adapter`, `builtin:NAME`, a family's directory
    or its `family.json`, one candidate as `family.json#slerp-0.45`, or a training run: its
    directory or `RUN/checkpoint-*`. Checkpoints of a run come by their step, and adapters among
    them are merged into the base that their config names. Raises `BadInput`.
    """
    named: list[Subject] = []
    for spec in spread(specs):
        place, member = split_member(spec)
        if member:
            family = Family.open(place)
            named.append(_member(family, family.candidate(member)))
        elif Path(spec).name == FILE or (Path(spec) / FILE).is_file():
            family = Family.open(spec)
            named += [_member(family, candidate) for candidate in family.candidates]
        else:
            named.append(_alone(spec))
    if not named:
        raise BadInput("No checkpoint was named. Give a directory, a hub id or a family.")
    return _named_apart(by_step(named))


def _alone(spec: str) -> Subject:
    """A checkpoint that belongs to no family."""
    path = Path(spec).expanduser()
    run, step = place_in_run(path) if path.is_dir() else ("", None)
    if is_adapter(path):
        base = read_json(path / "adapter_config.json").get("base_model_name_or_path") or ""
        there = Path(base).expanduser().is_dir() or hub_id(base) or base.startswith("builtin:")
        if step is None or not base or not there:
            raise BadInput(adapter_alone(path, spec))
        spec = f"{base}+{spec}"
    elif path.is_dir() and not (path / "config.json").is_file():
        raise BadInput(
            f"{spec} is neither a checkpoint (no config.json) nor a family (no {FILE}), and has no "
            "checkpoint-STEP of a training run in it."
        )
    checkpoint = resolve(spec)
    return Subject(label(checkpoint), spec, None, checkpoint.digest, checkpoint, run=run, step=step)


def spread(specs: Iterable[str]) -> list[str]:
    """The specs with patterns (`RUN/checkpoint-*`, which a recipe has no shell for) and directories
    of training runs replaced by what they hold; raises `BadInput` for a pattern of nothing."""
    found: list[str] = []
    for spec in specs:
        path = Path(spec).expanduser()
        if "*" in spec and not path.exists():
            matches = sorted(place for place in glob.glob(str(path)) if Path(place).is_dir())
            if not matches:
                raise BadInput(f"{spec} matches no directory, expected checkpoints.")
            found += matches
        elif path.is_dir() and not any(
            (path / name).is_file() for name in (FILE, "config.json", "adapter_config.json")
        ):
            inside = [place for place in path.iterdir() if place.is_dir()]
            steps = sorted(str(p) for p in inside if STEP.fullmatch(p.name) and _holds_weights(p))
            found += steps or [spec]
        else:
            found.append(spec)
    return found


def _holds_weights(directory: Path) -> bool:
    return (directory / "config.json").is_file() or is_adapter(directory)


def place_in_run(directory: Path) -> tuple[str, int | None]:
    """The training run that a checkpoint belongs to, and its step, by its trainer_state.json or
    else its name; ("", None) for any other. What a run left at its end lies around its steps."""
    directory = directory.absolute()
    state = read_json(directory / "trainer_state.json").get("global_step")
    match = STEP.fullmatch(directory.name)
    if match:
        return str(directory.parent), state if type(state) is int else int(match[1])
    around = any(STEP.fullmatch(place.name) for place in directory.iterdir() if place.is_dir())
    return (str(directory), state) if type(state) is int and around else ("", None)


def by_step(named: Sequence[Subject]) -> list[Subject]:
    """The checkpoints of each training run by their step, in the places that they take together;
    all others where they are. (A shell puts checkpoint-1000 before checkpoint-200.)"""
    runs = list(dict.fromkeys(subject.run for subject in named if subject.run))
    steps = iter(
        sorted((s for s in named if s.run), key=lambda s: (runs.index(s.run), s.step or 0))
    )
    return [next(steps) if subject.run else subject for subject in named]


def as_subject(checkpoint: Checkpoint) -> Subject:
    """One checkpoint on disk, as what a verb takes."""
    return Subject(label(checkpoint), checkpoint.spec, None, checkpoint.digest, checkpoint)


def open_checkpoint(spec: str) -> Checkpoint:
    """The one checkpoint that a spec names, as in `subjects`; raises `BadInput` for a whole family.

    A virtual candidate is written to a temporary directory, which goes with the process.
    """
    named = subjects([spec])
    if len(named) != 1:
        raise BadInput(f"{spec} is a family; name one candidate: {named[0].spec}")
    if named[0].checkpoint is not None:
        return named[0].checkpoint
    return Checkpoint.open(write_out(named[0], lineage.scratch() / named[0].name), spec)


def _member(family: Family, candidate: Candidate) -> Subject:
    spec = f"{family.path / FILE}#{candidate.name}"
    directory = family.directory(candidate)
    if candidate.endpoint is not None:
        checkpoint: Checkpoint | None = family.endpoints[candidate.endpoint]
    else:
        checkpoint = None if directory is None else Checkpoint.open(directory)
    return Subject(
        candidate.name, spec, candidate.ratio, candidate.digest, checkpoint, family, candidate
    )


def _named_apart(named: list[Subject]) -> list[Subject]:
    """Drop exact repeats; number different subjects that share a name."""
    apart: list[Subject] = []
    for subject in named:
        if any(_place(subject) == _place(other) for other in apart):
            continue
        taken = {s.name for s in apart}
        name, n = subject.name, 2
        while name in taken:
            name, n = f"{subject.name}-{n}", n + 1
        if name != subject.name:
            other = next(s.spec for s in apart if s.name == subject.name)
            progress.say(f"Note: {subject.spec} is called {name} here: {subject.name} is {other}.")
        apart.append(subject._replace(name=name))
    return apart


def _place(subject: Subject) -> str:
    """Where a subject is: its directory, or its entry in a family."""
    return subject.spec if subject.checkpoint is None else str(subject.checkpoint.path.resolve())


def write_out(subject: Subject, out: str | Path) -> Path:
    """The directory of a subject; a virtual candidate is written to `out` first, atomically.

    Raises `BadInput` when `out` holds something else, or the disk is full.
    """
    if subject.checkpoint is not None:
        return subject.checkpoint.path
    family, candidate, out = subject.family, subject.candidate, Path(out)
    if family is None or candidate is None:
        raise ValueError(f"{subject.spec} has neither a directory nor a family")
    family.require_unchanged()
    size = candidate_files.candidate_bytes(family.endpoints[0], family.dtype)
    lineage.require_room(out, size, f"Writing {candidate.name}")
    work = candidate_files.begin_candidate(family, candidate, out)
    if work is None:
        return out
    try:
        candidate_files.write_weights(with_cosines(family), [candidate], [work])
        candidate_files.write_side_files(family, candidate, work)
        lineage.finish(work, out)
    finally:
        lineage.let_go(work)
    return out
