"""What lies in the directories that were named: measured checkpoints, and how they were made."""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from surgeon import artifact, lineage
from surgeon.artifact import part
from surgeon.early_stop.stop_result import EarlyStop
from surgeon.errors import BadInput
from surgeon.families import Family
from surgeon.monitor.result import MonitoredRun
from surgeon.ranking import Ranking
from surgeon.show import Origin, ancestry
from surgeon.show.ancestry import home
from surgeon.show.kinds import RESULTS, kind_of
from surgeon.show.places import bases_of, locate, seen
from surgeon.truth import EVALUATION, Evaluation

DEEPEST = 2
"""Directories between one that was named and the results in it."""
TELLING = ("surgery", "says", "accuracy", "candidates", "early stop")
"""Facts that say most of a result; the last of them stands for it."""
UNMADE = "as it is"
"""How a checkpoint was made that no command here made."""


@part
class Point:
    """One checkpoint, measured."""

    name: str
    place: str
    """What names it."""
    made_by: str
    """The verb that made it; "as it is" for one that no command made."""
    value: float
    """Accuracy or its estimate, in [0, 1]."""
    low: float | None
    high: float | None
    """Ends of its 95 % interval."""
    tokens: float
    """Mean tokens of an answer."""
    source: str
    """The directory that says so."""
    recommended: bool = False
    """Whether that is a ranking which recommends it."""


@part
class Made:
    """One result."""

    place: str
    kind: str
    says: str
    """Its most important fact."""
    command: str | None
    lineage: Origin


class Comparison(NamedTuple):
    """Checkpoints that were measured on the same questions."""

    title: str
    kind: str
    points: list[Point]


class Gathered(NamedTuple):
    """What was found."""

    comparisons: list[Comparison]
    made: list[Made]
    files: dict[str, Path]
    """Place -> the file that was read."""


def gathered(runs: Iterable[str]) -> Gathered:
    """Everything in the directories; raises `BadInput` for one that isn't there, or is damaged."""
    found = Gathered([], [], {})
    by_task: dict[tuple[str, str], Comparison] = {}
    for directory in results(runs):
        place = seen(directory)
        file = next(
            (directory / name for name in RESULTS if (directory / name).is_file()),
            directory / lineage.FILE,
        )
        found.files[place] = file
        kind = kind_of(str(directory))
        record = lineage.read(directory) or {}
        facts = [f"{fact[0]}: {fact[1]}" for fact in kind.facts]
        own = next((f for f in reversed(facts) if f.startswith(TELLING)), facts[0])
        found.made.append(
            Made(place=place, kind=kind.name, says=own, command=record.get("command"),
                 lineage=ancestry(place))
        )  # fmt: skip
        for key, point in points_of(directory, file.name):
            title, what = key
            there = by_task.setdefault((title, what), Comparison(title, what, []))
            if all(p.name != point.name or p.source != point.source for p in there.points):
                there.points.append(_apart(point, there.points))
    # The page's first sentence is about the first one.
    found.comparisons.extend(sorted(by_task.values(), key=lambda c: (c.kind, -len(c.points))))
    return found


def _apart(point: Point, others: list[Point]) -> Point:
    """The point under a name that no other has: with the directory that measured it."""
    if all(p.name != point.name for p in others):
        return point
    return replace(point, name=f"{point.name} ({point.source})")


def results(runs: Iterable[str]) -> list[Path]:
    """The directories of finished results, each once, in the order they were named."""
    found: list[Path] = []
    for run in runs:
        path = Path(run).expanduser()
        if not path.is_dir():
            raise BadInput(f"{run} is not a directory, expected one that a command wrote.")
        found += [d for d in _below(path, DEEPEST) if d not in found]
    return found


def _below(path: Path, depth: int) -> list[Path]:
    if path.name.endswith(".partial"):
        return []
    if (path / lineage.FILE).is_file() or any((path / name).is_file() for name in RESULTS):
        return [path.resolve()]
    if depth == 0:
        return []
    inside = sorted(p for p in path.iterdir() if p.is_dir() and not p.is_symlink())
    return [found for p in inside for found in _below(p, depth - 1)]


def points_of(directory: Path, file: str) -> list[tuple[tuple[str, str], Point]]:
    """(task, `accuracy`, `estimate` or `agreement`) and a point for every checkpoint that a result
    measured."""
    record = lineage.read(directory) or {}
    bases, source = bases_of(directory, record), seen(directory)

    def point(name: str, spec: str, value: float, ends: tuple, tokens: float) -> Point:
        low, high = ends
        return Point(name=name, place=spec, made_by=made_by(spec, bases), value=value, low=low,
                     high=high, tokens=tokens, source=source)  # fmt: skip

    if file == EVALUATION:
        found = artifact.read(Evaluation, directory)
        title = f"{found.task.path} ({found.task.problems} problems)"
        return [
            ((title, "accuracy"),
             point(c.name, c.checkpoint, c.avg, c.interval.get("avg", (None, None)), c.tokens))
            for c in found.candidates
        ]  # fmt: skip
    if file == "ranking.json":
        ranking = artifact.read(Ranking, directory)
        title = f"{ranking.mini_set.path} ({ranking.mini_set.prompts} prompts)"
        told = ranking.recommendation and ranking.recommendation.name
        return [
            ((title, "estimate"),
             replace(point(c.name, c.checkpoint, value, c.interval.get("estimate", (None, None)),
                           c.tokens / max(1, c.responses)), recommended=c.name == told))
            for c in ranking.candidates
            if (value := c.scores.get("estimate")) is not None
        ]  # fmt: skip
    if file == "monitor.json":
        run = artifact.read(MonitoredRun, directory)
        if run.pass1 is None:
            return []
        title = f"{run.settings.get('prompts')} ({run.pass1.problems} problems)"
        name = f"{Path(run.checkpoint).name} monitored"
        monitored = point(
            name, run.checkpoint, run.pass1.value, run.pass1.interval, run.tokens.mean
        )
        return [((title, "accuracy"), replace(monitored, made_by="monitor"))]
    if file == "early-stop.json":
        return _stops(artifact.read(EarlyStop, directory), point, source)
    return []


def _stops(
    found: EarlyStop, point: Callable[..., Point], source: str
) -> list[tuple[tuple[str, str], Point]]:
    """The checkpoint without a stop and with the written one: on the test, or without one on the
    questions that set the threshold. Intervals are of differences only, so points have none."""
    tested = found.questions["test"] > 0
    on = found.settings["test"] if tested else \
        f"{found.settings['easy']} and {found.settings['hard']}, on which it was set"  # fmt: skip
    title = f"{on} ({found.questions['test' if tested else 'validation']} problems)"
    judged = found.test_judged if tested else found.judged
    base = re.split(r"[/:#]", found.checkpoint.rstrip("/"))[-1]
    points = []
    for row in found.rows:
        at = row.test if tested else row.chosen
        if at is None or not (row.written or row.rule == "never"):
            continue
        name, spec = (f"{base}, {row.rule} stop", source) if row.written else \
            (base, found.checkpoint)  # fmt: skip
        one = point(name, spec, at.right, (None, None), at.tokens)
        key = (title, "accuracy" if judged else "agreement")
        points.append((key, replace(one, made_by="early-stop") if row.written else one))
    return points


def made_by(spec: str, bases: list[Path]) -> str:
    """The verb that made a checkpoint."""
    there = locate(spec, bases)
    if there is None or there.startswith("builtin:"):
        return UNMADE
    if "#" in there and not Path(there).exists():
        name = there.rpartition("#")[2]
        return "merge" if Family.open(there.rpartition("#")[0]).candidate(name).merge else UNMADE
    directory = home(there)
    record = None if directory is None else lineage.read(directory)
    verb = UNMADE if record is None else str(record.get("verb") or UNMADE)
    return "merge" if verb == "merge-sweep" else verb
