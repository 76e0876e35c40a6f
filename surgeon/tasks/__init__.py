"""`surgeon tasks`: the papers' benchmarks as labelled tasks.

benchmarks.py   where each lies, and what its rows become

    surgeon tasks sciknoweval --out data/sciknoweval
    surgeon evaluate CHECKPOINT --tasks data/sciknoweval --out runs/evaluation
    surgeon distill CHECKPOINT --pool data/sciknoweval/bio-train.jsonl --out runs/student

A benchmark from outside, `module:function`, is a function without parameters that returns a
`Benchmark`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from surgeon import artifact, console, jsonl, lineage, named
from surgeon.errors import BadInput
from surgeon.settings import record, verb
from surgeon.settings.tasks import TasksSettings
from surgeon.tasks.benchmarks import BENCHMARKS, Benchmark, Question, Row
from surgeon.traces import parse_prompt
from surgeon.traces.sources import read_rows
from surgeon.truth import PreparedTask, PreparedTasks

__all__ = ["BENCHMARKS", "Benchmark", "show", "tasks"]


class TasksPlan(NamedTuple):
    """The questions of a benchmark, read and checked; nothing has been written yet."""

    settings: TasksSettings
    benchmark: Benchmark
    sources: dict[str, str]
    questions: dict[str, list[Question]]
    """By task."""
    run: lineage.Run


@verb(TasksSettings)
def tasks(settings: TasksSettings) -> PreparedTasks:
    """Write the labelled tasks of a benchmark to the directory `out`; raises `BadInput` first."""
    plan = prepare(settings)
    return artifact.once(settings.out, PreparedTasks, lambda work: write(plan, work), run=plan.run)


def prepare(settings: TasksSettings) -> TasksPlan:
    """Read the benchmark and turn its rows into questions; raises `BadInput` naming the row."""
    benchmark = named.row(BENCHMARKS, settings.benchmark, "benchmark")
    if not isinstance(benchmark, Benchmark):
        benchmark = benchmark()
    if not isinstance(benchmark, Benchmark):
        raise BadInput(
            f"found {settings.benchmark} = a {type(benchmark).__name__}, expected a Benchmark: see "
            "surgeon/tasks/benchmarks.py."
        )
    sources = sources_of(settings, benchmark)
    questions, digests = {}, {}
    for number, (task, source) in enumerate(sources.items()):
        rng = np.random.default_rng([abs(settings.seed), number])
        questions[task] = read_questions(benchmark, source, rng, settings.instruction)
        if benchmark.split and len(questions[task]) < 2:
            raise BadInput(f"{source} holds 1 question, expected 2 or more: they are split.")
        digests[task] = lineage.digest_of(questions[task])
    run = lineage.Run("tasks", record(settings), digests, settings.seed)
    return TasksPlan(settings, benchmark, sources, questions, run)


def sources_of(settings: TasksSettings, benchmark: Benchmark) -> dict[str, str]:
    """Task -> where it is read from."""
    given = settings.source
    if isinstance(given, str) and (
        len(benchmark.sources) == 1 or Path(given).expanduser().exists() or "=" not in given
    ):
        if len(benchmark.sources) > 1:
            raise BadInput(
                f"found one source, expected one for each task: --source "
                f"{','.join(f'{task}=FILE' for task in benchmark.sources)}."
            )
        return dict.fromkeys(benchmark.sources, given)
    if isinstance(given, str):
        pairs = [pair.partition("=") for pair in given.split(",")]
        given = {name.strip(): place.strip() for name, _, place in pairs}
    chosen: Mapping[str, str] = benchmark.sources if given is None else given
    for task, place in chosen.items():
        if task not in benchmark.sources:
            raise BadInput(
                f"found a source for {task}, expected tasks of {settings.benchmark}: "
                f"{', '.join(benchmark.sources)}."
            )
        if not place:
            raise BadInput(
                f"{settings.benchmark} lies on no hub that surgeon knows. Give --source FILE."
            )
    return dict(chosen)


def read_questions(
    benchmark: Benchmark, source: str, rng: np.random.Generator, instruction: str | None
) -> list[Question]:
    """All questions of one task, each with an id of its own."""
    below = benchmark.instruction if instruction is None else instruction
    found: dict[str, Question] = {}
    for number, (place, row) in enumerate(read_rows(source), 1):
        question = _question(benchmark.question, row, rng, place)
        if question is None:
            continue
        if below:
            question["prompt"] += f"\n\n{below}"
        identity = question.get("id") or str(number)
        if identity in found:
            identity = f"{identity}-{number}"
        found[identity] = {"id": identity, **{k: v for k, v in question.items() if k != "id"}}
        parse_prompt(found[identity], place, identity)
    if not found:
        raise BadInput(f"{source} holds no question of this benchmark, expected at least one.")
    return list(found.values())


def _question(
    make: Callable[[Row, np.random.Generator], Question | None],
    row: object,
    rng: np.random.Generator,
    place: str,
) -> Question | None:
    if not isinstance(row, dict):
        raise BadInput(f"{place}: found no object, expected a row of the benchmark.")
    try:
        return make(row, rng)
    except KeyError as error:
        raise BadInput(
            f"{place}: found the columns {', '.join(map(str, row))}, expected {error.args[0]} "
            "among them, as the benchmark's data set has it."
        ) from None
    except (TypeError, ValueError, IndexError) as error:
        raise BadInput(f"{place}: found a row that can't be read ({error}).") from None


def write(plan: TasksPlan, work: Path) -> PreparedTasks:
    """Write the files of every task."""
    made = {}
    for number, (task, questions) in enumerate(plan.questions.items()):
        test = questions
        if plan.benchmark.split:
            order = np.random.default_rng([abs(plan.settings.seed), number, 1])
            train, test = parted(questions, plan, order)
            jsonl.write(work / f"{task}-train.jsonl", train[: plan.settings.limit])
        test = test[: plan.settings.limit]
        jsonl.write(work / f"{task}.jsonl", test)
        made[task] = PreparedTask(
            file=f"{task}.jsonl", problems=len(test), check=plan.benchmark.check,
            answer=plan.benchmark.answer,
        )  # fmt: skip
    return PreparedTasks(source=",".join(plan.sources.values()), tasks=made)


def parted(
    questions: list[Question], plan: TasksPlan, rng: np.random.Generator
) -> tuple[list[Question], list[Question]]:
    """Questions for training and for testing, shuffled: by the paper's numbers where there are as
    many questions, else by share; at least one each."""
    shuffled = [questions[n] for n in rng.permutation(len(questions))]
    sizes = plan.benchmark.sizes
    if sizes is not None and len(shuffled) == sum(sizes):
        first = sizes[0]
    else:
        first = min(max(1, round(plan.settings.train * len(shuffled))), len(shuffled) - 1)
    return shuffled[:first], shuffled[first:]


def show(result: PreparedTasks) -> None:
    """Print what was prepared and how it is used."""
    console.announce(result.already, "This preparation")
    for name, task in result.tasks.items():
        train = result.out / f"{name}-train.jsonl"
        more = f"; for training {train}" if train.is_file() else ""
        console.say(f"{name}: {task.problems} questions, checked by {task.check}{more}")
    console.say(f"Use them: surgeon evaluate CHECKPOINT --tasks {result.out} --out DIR")
