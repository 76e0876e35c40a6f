"""The labelled tasks of an evaluation: one, or several by name, each with its check and extractor.

With several, a problem is called `TASK/ID`, so that ids of different tasks can't be taken for one
another; all of them are asked together.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from surgeon import artifact
from surgeon.answers import Extractor, gold_problem, parse_check, parse_extractor
from surgeon.errors import BadInput
from surgeon.settings.evaluate import EvaluateSettings
from surgeon.traces import Prompt, read_prompts
from surgeon.truth import MEAN, PreparedTasks

TASK = re.compile(r"[\w.-]+")
TAKEN = (MEAN, "in-domain", "cross-domain")
"""What the tables call what they make of several tasks."""


class LabelledTask(NamedTuple):
    """Problems with answers, and how answers to them are read and compared."""

    name: str
    """Empty for the only one."""
    path: str
    every: Sequence[Prompt]
    """All of its problems, by the ids that the run has for them."""
    problems: Sequence[Prompt]
    """Those that are asked."""
    check: str
    answer: str
    extract: Extractor


def named_values(what: str, given: str | Mapping[str, str] | None) -> dict[str, str]:
    """`a=x,b=y`, or a mapping, as a mapping; raises `BadInput` for anything else."""
    if given is None:
        return {}
    if not isinstance(given, str):
        return dict(given)
    found: dict[str, str] = {}
    for pair in given.split(","):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not (name and equals and value):
            raise BadInput(f"found {pair!r} in {what}, expected NAME=VALUE,NAME=VALUE,...")
        if name in found:
            raise BadInput(f"found {name} twice in {what}, expected each name once.")
        found[name] = value
    return found


def read_tasks(settings: EvaluateSettings) -> list[LabelledTask]:
    """The tasks with their problems; raises `BadInput` naming what can't be used, and of a problem
    its line."""
    if bool(settings.task) == bool(settings.tasks):
        found = "both task and tasks" if settings.task else "neither task nor tasks"
        raise BadInput(f"found {found}, expected --task FILE or --tasks NAME=FILE,NAME=FILE,...")
    checks = named_values("checks", settings.checks)
    answers = named_values("answers", settings.answers)
    if settings.task:
        for name, given in (("checks", checks), ("answers", answers)):
            if given:
                raise BadInput(
                    f"found {name} with one task, expected --{name[:-1]}: those are for --tasks."
                )
        return [_task(settings, "", settings.task, settings.check, settings.answer)]
    files, prepared = _files(settings)
    for what, given in (("checks", checks), ("answers", answers)):
        for name in given:
            if name not in files:
                raise BadInput(
                    f"{what} name {name}, which is no task. Name some of: {_list(files)}."
                )
    tasks = []
    for name, path in files.items():
        if not TASK.fullmatch(name) or name in TAKEN:
            raise BadInput(
                f"found a task called {name!r}, expected letters, digits, dots, dashes and "
                f"underscores, and none of {', '.join(TAKEN)}."
            )
        of = None if prepared is None else prepared.tasks[name]
        check = checks.get(name) or (of.check if of else settings.check)
        answer = answers.get(name) or (of.answer if of else settings.answer)
        tasks.append(_task(settings, name, path, check, answer))
    return tasks


def _files(settings: EvaluateSettings) -> tuple[dict[str, str], PreparedTasks | None]:
    """Task -> file, and what `surgeon tasks` wrote of them where a directory of it is named."""
    given = settings.tasks
    if isinstance(given, str) and "=" not in given:
        place = Path(given).expanduser()
        root = place if place.is_dir() else place.parent
        if not (root / PreparedTasks.FILE).is_file():  # pyright: ignore
            raise BadInput(
                f"found tasks = {given}, expected NAME=FILE,NAME=FILE,... or a directory that "
                "surgeon tasks wrote."
            )
        prepared = artifact.read(PreparedTasks, root)
        return {name: str(root / task.file) for name, task in prepared.tasks.items()}, prepared
    return named_values("tasks", given), None


def _task(
    settings: EvaluateSettings, name: str, path: str, check: str, answer: str
) -> LabelledTask:
    parse_check(check)
    extract = parse_extractor(answer, settings.reading.answer_words)

    def complaint(problem: Prompt) -> str | None:
        if problem.answer is None:
            return "no answer, expected the correct one in the field `answer` of every problem"
        return gold_problem(problem.answer, check)

    every = read_prompts(path, complaint, settings.columns)
    if name:
        every = [replace(problem, id=f"{name}/{problem.id}") for problem in every]
    return LabelledTask(name, path, every, every[: settings.limit], check, answer, extract)


def require_sources(settings: EvaluateSettings, names: Sequence[str]) -> dict[str, str]:
    """Candidate -> the task it was trained on; raises `BadInput` for a candidate that isn't
    evaluated."""
    sources = named_values("trained_on", settings.trained_on)
    if sources and not settings.tasks:
        raise BadInput("found trained_on without tasks, expected --tasks NAME=FILE,... beside it.")
    for name in sources:
        if name not in names:
            raise BadInput(
                f"trained_on names {name}, which is not evaluated. Name some of: {_list(names)}."
            )
    return sources


def _list(names: Sequence[str] | Mapping[str, str]) -> str:
    return ", ".join(names)
