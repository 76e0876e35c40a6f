"""The measures of candidates and groups on each task and over all of them.

Every measure of a task is resampled with the same draws of its problems for every candidate, so
that differences are paired. Over tasks a measure is the mean of the tasks' values, as in the
papers' tables, and its resamples are the means of theirs: each task's problems are drawn apart.
"""

# Shape letters: P problems, M metrics, S members of a group, K samples, X bins of the calibration
# error, B bootstrap resamples.

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from surgeon import lineage, metrics
from surgeon.answers import CheckVerdict, classes_of
from surgeon.evaluate.labelled import LabelledTask
from surgeon.evaluate.plan import EvaluatePlan, task_input
from surgeon.settings import record
from surgeon.settings.evaluate import EvaluateSettings
from surgeon.traces import Trace
from surgeon.truth import (
    Beside,
    CalibrationBin,
    EvaluatedCandidate,
    EvaluatedGroup,
    EvaluatedTask,
    Evaluation,
    Gain,
    Measures,
    TaskResult,
    Transfer,
)

BINS = 15
"""Equal-width bins of the calibration error (Neuron-OPSD, sec. 5)."""
WORTH_SAYING = 0.2
"""Share of truncated or unreadable responses above which a warning is given."""
METRICS = ("avg", "maj", "pass1", "tokens", "truncated", "missing", "ece")


class Judged(NamedTuple):
    """One candidate's responses, in the problems' order, and how each was judged."""

    traces: list[Trace]
    answers: list[str | None]
    verdicts: list[CheckVerdict]


class Values(NamedTuple):
    """What one candidate did on the problems of one task."""

    metric: dict[str, np.ndarray]
    """Of each metric that is a mean over problems, float64_P."""
    confidence_P: np.ndarray
    """Share of the votes that the majority has."""
    consistency_K: np.ndarray
    """Accuracy of the majority of 1, 2, ..., k samples: self-consistency, Cons@j."""


class Drawn(NamedTuple):
    """The measures of one candidate on one task, or over several, and their resamples."""

    point_M: np.ndarray
    """In the order of `METRICS`."""
    value_BM: np.ndarray
    cons_K: np.ndarray


def by_problem(settings: EvaluateSettings, check: str, judged: Judged) -> Values:
    """One candidate's metrics, problem by problem of one task."""
    k = settings.sampling.samples

    def apart(values: list[Any]) -> list[list[Any]]:
        return [values[start : start + k] for start in range(0, len(values), k)]

    votes = classes_of(apart(judged.answers), check)
    correct = apart([verdict.correct for verdict in judged.verdicts])
    accuracy_P = metrics.accuracy_by_prompt(correct)
    metric = {
        "avg": accuracy_P,
        "maj": metrics.majority_by_prompt(votes, correct),
        "pass1": accuracy_P,
        "tokens": np.mean(apart([len(t.token_ids) for t in judged.traces]), axis=1),
        "truncated": np.mean(apart([t.finish_reason == "length" for t in judged.traces]), axis=1),
        "missing": np.mean(apart([answer is None for answer in judged.answers]), axis=1),
    }
    return Values(
        metric,
        metrics.agreement_by_prompt(votes),
        np.array([metrics.consistency_by_prompt(votes, correct, j + 1).mean() for j in range(k)]),
    )


def drawn(values: Values, seed: int) -> Drawn:
    """Measures on one task, with resamples of its problems."""
    value_PM = np.column_stack(list(values.metric.values()))
    gap_PX = metrics.calibration_gaps(values.confidence_P, values.metric["maj"], bins=BINS)
    ece_B = np.abs(metrics.resampled_means(gap_PX, seed=seed)).sum(axis=1)
    mean_BM = metrics.resampled_means(value_PM, seed=seed)
    ece = float(np.abs(gap_PX.mean(axis=0)).sum())
    return Drawn(
        np.append(value_PM.mean(axis=0), ece),
        np.column_stack([mean_BM, ece_B]),
        values.consistency_K,
    )


def over_tasks(several: Sequence[Drawn]) -> Drawn:
    """The mean over tasks."""
    return Drawn(*(np.mean(parts, axis=0) for parts in zip(*several, strict=True)))


def seed_of(seed: int, number: int) -> int:
    """The seed of a task's resamples: the tasks' problems are drawn apart from each other."""
    if number == 0:
        return seed
    return int(np.random.SeedSequence([abs(seed), number]).generate_state(1)[0])


def calibration(several: Sequence[Values]) -> tuple[CalibrationBin, ...]:
    """The reliability diagram of the majority vote: problems by its share of the votes."""
    confidence_P = np.concatenate([values.confidence_P for values in several])
    right_P = np.concatenate([values.metric["maj"] for values in several])
    bin_P = np.clip(np.ceil(confidence_P * BINS - 1e-9).astype(int) - 1, 0, BINS - 1)
    return tuple(
        CalibrationBin(
            low=float(x / BINS),
            problems=int((bin_P == x).sum()),
            confidence=float(confidence_P[bin_P == x].mean()),
            accuracy=float(right_P[bin_P == x].mean()),
        )
        for x in np.unique(bin_P).tolist()
    )


class Measured(NamedTuple):
    """Everything that was measured, to be summed up under any name."""

    settings: EvaluateSettings
    values: Mapping[str, Sequence[Values]]
    """Candidate -> what it did on each task."""
    tasks: Mapping[str, Sequence[Drawn]]
    """Candidate -> its measures on each task."""

    @property
    def seed(self) -> int:
        return self.settings.sampling.seed

    def measures(self, name: str, members: Sequence[str], task: int | None = None) -> Measures:
        """Each metric's mean over the members, and its interval, over problems and members both;
        on one task or over all."""
        several = [self.drawn(member, task) for member in members]
        value_BSM = np.stack([one.value_BM for one in several], axis=1)
        mean_BM = metrics.resampled_members(value_BSM, seed=self.seed)
        ends = metrics.percentile_interval(mean_BM).tolist()
        point = dict(zip(METRICS, np.mean([one.point_M for one in several], axis=0), strict=True))
        of = slice(None) if task is None else slice(task, task + 1)
        return Measures(
            name=name,
            **{metric: float(value) for metric, value in point.items()},
            interval={name: tuple(pair) for name, pair in zip(METRICS, ends, strict=True)},
            cons=tuple(np.mean([one.cons_K for one in several], axis=0).tolist()),
            gain=self.gain(several, members, task),
            calibration=calibration([v for member in members for v in self.values[member][of]]),
        )

    def drawn(self, name: str, task: int | None = None) -> Drawn:
        """A candidate's measures on one task, or over all of them."""
        return over_tasks(self.tasks[name]) if task is None else self.tasks[name][task]

    def gain(
        self, several: Sequence[Drawn], members: Sequence[str], task: int | None
    ) -> Gain | None:
        """How much more accurate the members are than the baseline, on the same problems."""
        baseline = self.settings.baseline
        if baseline is None or list(members) == [baseline]:
            return None
        base, at = self.drawn(baseline, task), METRICS.index("avg")
        more_BS = np.stack([one.value_BM[:, at] - base.value_BM[:, at] for one in several], axis=1)
        mean_B = metrics.resampled_members(more_BS, seed=self.seed)
        low, high = metrics.percentile_interval(mean_B)
        more = float(np.mean([one.point_M[at] - base.point_M[at] for one in several]))
        return Gain(avg=more, interval=(float(low), float(high)))


def conclude(plan: EvaluatePlan, judged: Mapping[str, Judged]) -> Evaluation:
    """The measures of every candidate and group."""
    settings = plan.settings
    values = {name: values_by_task(plan, one) for name, one in judged.items()}
    tasks = {
        name: [drawn(v, seed_of(settings.sampling.seed, n)) for n, v in enumerate(several)]
        for name, several in values.items()
    }
    measured = Measured(settings, values, tasks)
    places = [(s.name, s.spec, s.ratio, s.digest) for s in plan.subjects]
    files = settings.responses or {}
    places += [(name, files[name], None, plan.inputs[name]) for name in plan.foreign]
    candidates = tuple(
        EvaluatedCandidate(
            checkpoint=checkpoint,
            ratio=ratio,
            digest=digest,
            problems=len(plan.problems),
            responses=len(judged[name].traces),
            check_timeouts=sum(verdict.timed_out for verdict in judged[name].verdicts),
            check_deaths=sum(verdict.died for verdict in judged[name].verdicts),
            **vars(measured.measures(name, [name])),
        )
        for name, checkpoint, ratio, digest in places
    )
    groups = tuple(
        EvaluatedGroup(members=members, **vars(measured.measures(name, members)))
        for name, members in (settings.groups or {}).items()
    )
    several = plan.tasks if settings.tasks else []
    return Evaluation(
        task=EvaluatedTask(
            path=settings.task or ",".join(f"{task.name}={task.path}" for task in plan.tasks),
            problems=len(plan.problems),
            digest=lineage.digest_of([plan.inputs[task_input(task)] for task in plan.tasks])
            if several
            else plan.inputs[task_input(plan.tasks[0])],
        ),
        settings=lineage.plain(record(settings)),
        warnings=(*warnings(settings, candidates), *untested(plan)),
        candidates=candidates,
        groups=groups,
        tasks=tuple(task_result(plan, measured, n, task) for n, task in enumerate(several)),
        transfers=tuple(transfers(plan, measured)),
        sources=plan.sources,
    )


def values_by_task(plan: EvaluatePlan, judged: Judged) -> list[Values]:
    """One candidate's metrics on each task."""
    found, first = [], 0
    for task in plan.tasks:
        last = first + len(task.problems) * plan.settings.sampling.samples
        of = slice(first, last)
        part = Judged(judged.traces[of], judged.answers[of], judged.verdicts[of])
        found.append(by_problem(plan.settings, task.check, part))
        first = last
    return found


def task_result(
    plan: EvaluatePlan, measured: Measured, number: int, task: LabelledTask
) -> TaskResult:
    """What every candidate and group reaches on one task."""
    named = {name: (name,) for name in measured.tasks} | (plan.settings.groups or {})
    return TaskResult(
        name=task.name,
        path=task.path,
        problems=len(task.problems),
        digest=plan.inputs[task_input(task)],
        check=task.check,
        answer=task.answer,
        measures=tuple(measured.measures(n, members, number) for n, members in named.items()),
    )


# In-domain and cross-domain ----------------------------------------------------------------------


def transfers(plan: EvaluatePlan, measured: Measured) -> list[Transfer]:
    """What each candidate that was trained on a task reaches on it and on the others, and each
    group of such candidates (Neuron-OPSD Tab. 3, 4)."""
    groups = plan.settings.groups or {}
    named = {name: (name,) for name in plan.sources}
    named |= {
        name: members
        for name, members in groups.items()
        if all(member in plan.sources for member in members)
    }
    return [transfer(plan, measured, name, members) for name, members in named.items()]


def transfer(plan: EvaluatePlan, measured: Measured, name: str, members: Sequence[str]) -> Transfer:
    """The mean over the members of their own task, and of their mean over the other tasks."""
    numbers = {task.name: n for n, task in enumerate(plan.tasks)}
    own = [numbers.get(plan.sources[member]) for member in members]
    others = [[n for n in numbers.values() if n != task] for task in own]
    inside = None if None in own else [[task] for task in own if task is not None]
    outside = others if all(others) else None

    def compared(metric: str, support: list[list[int]] | None) -> Beside | None:
        return None if support is None else _compared(plan, measured, metric, members, support)

    return Transfer(
        name=name,
        sources=tuple(dict.fromkeys(plan.sources[member] for member in members)),
        in_avg=compared("avg", inside),
        cross_avg=compared("avg", outside),
        in_ece=compared("ece", inside),
        cross_ece=compared("ece", outside),
    )


def _compared(
    plan: EvaluatePlan,
    measured: Measured,
    metric: str,
    members: Sequence[str],
    support: Sequence[Sequence[int]],
) -> Beside:
    """A metric's mean over the members, each on its own support of tasks, and how much more it is
    than the baseline's on the same tasks."""
    at, baseline = METRICS.index(metric), plan.settings.baseline

    def of(names: Sequence[str]) -> tuple[float, np.ndarray]:
        drawn = [
            over_tasks([measured.tasks[name][n] for n in tasks])
            for name, tasks in zip(names, support, strict=True)
        ]
        value_BS = np.stack([one.value_BM[:, at] for one in drawn], axis=1)
        return float(np.mean([one.point_M[at] for one in drawn])), value_BS

    # Seeds of one source are a sample of seeds; different sources are these sources.
    seeds = len({plan.sources[member] for member in members}) == 1

    def ends(value_BS: np.ndarray) -> tuple[float, float]:
        mean_B = (
            metrics.resampled_members(value_BS, seed=measured.seed)
            if seeds
            else value_BS.mean(axis=1)
        )
        low, high = metrics.percentile_interval(mean_B)
        return float(low), float(high)

    value, value_BS = of(members)
    if baseline is None:
        return Beside(value=value, interval=ends(value_BS))
    base, base_BS = of([baseline] * len(members))
    return Beside(
        value=value,
        interval=ends(value_BS),
        gain=value - base,
        gain_interval=ends(value_BS - base_BS),
    )


# In words ----------------------------------------------------------------------------------------


def untested(plan: EvaluatePlan) -> list[str]:
    """A sentence on every candidate whose own task isn't among the tasks."""
    names = [task.name for task in plan.tasks]
    return [
        f"{candidate} was trained on {source}, which is none of the tasks ({', '.join(names)}), so "
        "it has no in-domain value."
        for candidate, source in plan.sources.items()
        if source not in names
    ]


def warnings(settings: EvaluateSettings, candidates: Sequence[EvaluatedCandidate]) -> list[str]:
    """Plain sentences about what the accuracies may not show; empty when nothing is amiss."""
    sentences = []
    truncated = float(np.mean([c.truncated for c in candidates]))
    unread = float(np.mean([c.missing - c.truncated for c in candidates]))
    stopped = sum(c.check_timeouts + c.check_deaths for c in candidates)
    if truncated > WORTH_SAYING:
        sentences.append(
            f"{truncated:.0%} of the responses were cut at {settings.sampling.end}, and count as "
            "wrong."
        )
    if unread > WORTH_SAYING:
        sentences.append(
            f"No answer was found in {unread:.0%} of the responses, and they count as wrong. Does "
            f"the extractor {settings.answer!r} fit how these models answer?"
        )
    if stopped:
        sentences.append(
            f"{stopped} answers count as wrong because their check took longer than "
            f"{settings.timeout_s:g} s or its process died."
        )
    return sentences
