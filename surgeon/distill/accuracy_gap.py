"""How much more often the teacher is right than the student, before training.

He, Sieber and Saponati (2026; arXiv 2605.30070) found the gain of on-policy self-distillation to be
linear in it: over many contexts of a model, its accuracy after training minus that before is about
a slope times

    gap = accuracy(teacher with its context) - accuracy(student), sampled alike before training,

with slopes of 1.49 (Qwen3-8B, R2 .95), 1.51 (Qwen3 from 0.6B to 8B, R2 .98) and 0.66 (Olmo-3-7B,
R2 1.00), and an intercept near 0. Without labels an answer counts as right when it is the most
frequent one of both sides' answers together, equally many of each: where the majority is wrong, the
gap by votes says nothing.
"""

# Shapes: Q questions, G answers of a side to each.

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from surgeon import metrics
from surgeon.answers import check_many, majority
from surgeon.artifact import part
from surgeon.distill.demonstrations import Context, teacher_conversation
from surgeon.distill.plan import DistillPlan
from surgeon.distill.pool import Answers, LiveModel, answer_prompts
from surgeon.traces import Trace

SLOPES = (0.66, 1.5)
"""Gain per gap of the two families of models in the paper."""


@part
class AccuracyGap:
    """Right answers of teacher and student to the same questions."""

    against: Literal["votes", "labels"]
    questions: int
    student: float
    teacher: float
    """Shares of right answers."""
    gap: float
    interval: tuple[float, float]
    """Teacher's minus student's, and its bootstrap interval over questions."""

    def sentence(self) -> str:
        """The gap, and the gain that the paper's slopes make of it."""
        low, high = self.interval
        gains = sorted(slope * self.gap for slope in SLOPES)
        return (
            f"{self.gap:+.3f} ({low:+.3f} to {high:+.3f}; teacher {self.teacher:.3f}, student "
            f"{self.student:.3f} by {self.against}); by the law a gain of {gains[0]:+.3f} to "
            f"{gains[1]:+.3f}"
        )


def accuracy_gap(
    student_QG: Sequence[Sequence[float]],
    teacher_QG: Sequence[Sequence[float]],
    *,
    against: Literal["votes", "labels"],
    seed: int = 0,
) -> AccuracyGap:
    """The gap, from whether each answer is right; at least one question, averaged over its answers
    first."""
    student_Q = np.array([np.mean(row) for row in student_QG])
    teacher_Q = np.array([np.mean(row) for row in teacher_QG])
    gap_Q = teacher_Q - student_Q
    low, high = metrics.bootstrap_interval(gap_Q, seed=seed)
    return AccuracyGap(
        against=against,
        questions=len(gap_Q),
        student=float(student_Q.mean()),
        teacher=float(teacher_Q.mean()),
        gap=float(gap_Q.mean()),
        interval=(low, high),
    )


def by_votes(
    student: Sequence[Sequence[str | None]], teacher: Sequence[Sequence[str | None]], seed: int = 0
) -> AccuracyGap:
    """The gap where right is what most answers of both sides give; `None` is never right."""
    right: list[list[list[float]]] = []
    for own, others in zip(student, teacher, strict=True):
        best = majority([*own, *others])
        right.append([[float(v is not None and v == best) for v in row] for row in (own, others)])
    return accuracy_gap(
        [own for own, _ in right], [others for _, others in right], against="votes", seed=seed
    )


def teachers_gap(
    plan: DistillPlan,
    live: LiveModel,
    traces: Sequence[Trace],
    contexts: dict[int, Context],
    answers: Answers,
    probed: Sequence[int],
    work: Path,
) -> list[AccuracyGap]:
    """The gap on the probed questions by votes, and by labels where all of them have one.

    The teacher answers them as often as the student did, with its demonstrations.
    """
    sampling, seed = plan.settings.sampling, plan.settings.seed
    asked = [teacher_conversation(plan, traces, contexts[i], i) for i in probed]
    told = answer_prompts(plan, live, asked, sampling, work / "teacher", "teacher's answers")
    ids, samples = [plan.prompts[i].id for i in probed], range(sampling.samples)
    sides = [[[side[name, n] for n in samples] for name in ids] for side in (answers, told)]
    pooled = plan.votes([[*own, *others] for own, others in zip(*sides, strict=True)])
    k = sampling.samples
    found = [by_votes([v[:k] for v in pooled], [v[k:] for v in pooled], seed)]
    if plan.labels.keys() >= set(ids):
        student, teacher = (
            [
                [
                    float(verdict.correct)
                    for verdict in check_many(
                        [(answer, plan.labels[name]) for answer in plan.read(row)],
                        plan.settings.check or "exact",
                    )
                ]
                for name, row in zip(ids, side, strict=True)
            ]
            for side in sides
        )
        found.append(accuracy_gap(student, teacher, against="labels", seed=seed))
    return found
