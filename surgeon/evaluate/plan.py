"""What an evaluation is asked to do, checked against files and headers; computes nothing."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from surgeon import engines, lineage, named
from surgeon.answers import parse_tags
from surgeon.checkpoint import placement
from surgeon.consensus import require_budget
from surgeon.errors import BadInput
from surgeon.evaluate.labelled import LabelledTask, read_tasks, require_sources
from surgeon.families import Subject, subjects
from surgeon.live import support
from surgeon.live.families import require_prompts, stop_ids_of, tokenizer_of
from surgeon.settings import record
from surgeon.settings.evaluate import EvaluateSettings
from surgeon.settings.nopsd import NopsdReadings
from surgeon.traces import Prompt, Trace, digest_of_prompts, keys_of, read_plain
from surgeon.workers import Roster, roster

if TYPE_CHECKING:
    import torch

NAME = re.compile(r"[\w.-]+")


class EvaluatePlan(NamedTuple):
    """An evaluation whose inputs have been checked; nothing has been computed yet."""

    settings: EvaluateSettings
    subjects: list[Subject]
    foreign: dict[str, list[Trace]]
    """Responses that were made elsewhere, by name, in the problems' order."""
    tasks: list[LabelledTask]
    problems: list[Prompt]
    """Of all tasks, one after the other."""
    sources: dict[str, str]
    """Candidate -> the task it was trained on, where that was said."""
    device: str
    dtype: "torch.dtype | None"
    """None: as on disk."""
    roster: Roster | None
    """The workers; None where this process works alone."""
    inputs: dict[str, str]


def run_of(plan: EvaluatePlan) -> lineage.Run:
    """What makes the evaluation this evaluation."""
    return lineage.Run("evaluate", record(plan.settings), plan.inputs, plan.settings.sampling.seed)


def prepare(settings: EvaluateSettings) -> EvaluatePlan:
    """Check every input of an evaluation against files and headers; raises `BadInput`."""
    device, dtype = placement(settings.machine.device, settings.machine.dtype, several=True)
    workers = roster(settings.workforce, settings.machine.device, settings.machine.dtype)
    parse_tags(settings.reading.think_tags)
    tasks = read_tasks(settings)
    every = [problem for task in tasks for problem in task.every]
    problems = [problem for task in tasks for problem in task.problems]
    chosen = subjects(list(settings.checkpoints))
    foreign = read_responses(settings, problems, chosen, every)
    if settings.consensus:
        for subject in chosen:
            support.require("distill", subject.source)
            require_budget(subject.source, consensus_readings(settings), "consensus_top")
    names = [*(subject.name for subject in chosen), *foreign]
    require_names(settings, names)
    sources = require_sources(settings, names)
    if not settings.out.exists():
        require_prompts(chosen, problems, settings.sampling)
    asks = not settings.out.exists()
    engines.require_engine(settings.engine, chosen, problems, asks=asks)
    # Names of candidates hold no spaces, so nothing else here can be taken for one.
    inputs = {subject.name: subject.digest for subject in chosen}
    inputs |= {name: lineage.file_digest((settings.responses or {})[name]) for name in foreign}
    for task in tasks:
        inputs[task_input(task)] = digest_of_prompts(task.problems)
        inputs |= named.digests(answer=task.answer, check=task.check)
    return EvaluatePlan(
        settings, chosen, foreign, tasks, problems, sources, device, dtype, workers, inputs
    )


def task_input(task: LabelledTask) -> str:
    """What a task is called among a run's inputs."""
    return f"labelled task {task.name}".rstrip()


def read_responses(
    settings: EvaluateSettings,
    problems: Sequence[Prompt],
    chosen: Sequence[Subject],
    every: Sequence[Prompt],
) -> dict[str, list[Trace]]:
    """The first responses to each problem from files of answers, in the problems' order; raises
    `BadInput` where one is missing, or a name is not its own.

    Answers that are text, to `every` problem of the task, are read with the first candidate's
    tokenizer.
    """
    foreign = {}
    taken = [subject.name for subject in chosen]
    wanted = keys_of(problems, settings.sampling.samples)
    for name, file in (settings.responses or {}).items():
        if name in taken or not NAME.fullmatch(name):
            raise BadInput(
                f"responses are called {name!r}, expected a name of its own of letters, digits, "
                "dots, dashes and underscores."
            )
        if not Path(file).is_file():
            raise BadInput(f"responses {name}: {file} is no file. Give a traces.jsonl.")
        tokenizer = tokenizer_of(chosen[0])
        stop = stop_ids_of(chosen[0], tokenizer)
        found = read_plain(file, every, tokenizer, settings.sampling, stop)
        found.say(f"responses {name}")
        traces = {trace.key: trace for trace in found.traces}
        missing = [key for key in wanted if key not in traces]
        if missing:
            problem, sample = missing[0]
            raise BadInput(
                f"responses {name}: {file} lacks {len(missing)} of {len(wanted)} responses, first "
                f"sample {sample} of problem {problem}. Make them with the same task and at least "
                "as many samples."
            )
        foreign[name] = [traces[key] for key in wanted]
    return foreign


def require_names(settings: EvaluateSettings, names: Sequence[str]) -> None:
    """Raise `BadInput` unless the baseline and all groups consist of what is evaluated."""
    known = ", ".join(names)
    if settings.baseline is not None and settings.baseline not in names:
        raise BadInput(f"baseline {settings.baseline} is not evaluated. Name one of: {known}.")
    for group, members in (settings.groups or {}).items():
        for member in members:
            if member not in names:
                raise BadInput(
                    f"group {group} holds {member}, which is not evaluated. Name some of: {known}."
                )
        if not members:
            raise BadInput(f"group {group} holds no candidate. Name some of: {known}.")


def consensus_readings(settings: EvaluateSettings) -> NopsdReadings:
    """How contribution sets are formed."""
    return NopsdReadings(top_global=settings.consensus_top)
