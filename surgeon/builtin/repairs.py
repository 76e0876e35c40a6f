"""Exact training examples for the built-in task: a failing step, its repair, and how it goes on.

After a wrong result the repair is the check that finds it (`Wait, check *7: 3 = 1, no.`), which by
the rules of the task leaves the right result behind; after anything else that is wrong, a new
start. After needless checks it is the step that goes on. What follows is written without a failure,
in the trace's own reading of an ambiguous operator.
"""

import re
from collections.abc import Sequence
from random import Random

from surgeon.builtin import task
from surgeon.judges.finding import Assignment, Rewritten

LEAP, CHECK = 0.15, 0.8
"""How the rest is written: as the Thinking endpoint writes, without its failures."""
STUCK = (3, 5)
"""Fewest and most needless checks that are made up (App. G: loops of 3, 4 or 5)."""

_STEP = re.compile(r"(?:Next|So) (.+): (\d) = (\d)")
_LEFT = re.compile(r"(?:Wait, check .+: \d|Or .+: \d|Note x) = (\d).*")
"""The value that a needless step leaves behind."""
_UNDONE = re.compile(r"Undo [^:]+: (\d).*")


def write(assignment: Assignment, rng: Random) -> Rewritten | None:
    """The parts of an example, its rest at random; None where none can be made.

    Raises `BadInput` for another task's question.
    """
    question, steps, level = assignment.question, assignment.steps, assignment.level
    if assignment.made:
        return make_up(question, steps, level, rng=rng)
    return rewrite(question, steps, level, assignment.first, assignment.last, rng=rng)


def rewrite(
    question: str, steps: Sequence[str], level: str, first: int, last: int, *, rng: Random
) -> Rewritten | None:
    """The example for the failing steps `first` to `last` of a trace; None where none can be made.

    Needless checks before the failing step are left out; any other failure there makes the example
    impossible, since it would be learned. So does a failing step that would read as several, or as
    the end of the thinking.
    """
    problem, labels = _labelled(question, steps[: last + 1])
    kept = [label for label in labels[:first] if label.failure != "inter"]
    if len(labels) <= last or any(label.failure not in (None, "misread") for label in kept):
        return None
    wrong = [label.text for label in labels[first:]]
    if any(mark in text for text in wrong for mark in ("\n\n", *task.THINK)):
        return None
    return _Example(problem, [label.text for label in kept], wrong, level).written(rng)


def make_up(question: str, steps: Sequence[str], level: str, *, rng: Random) -> Rewritten | None:
    """An example whose failure is made up, at a random step of a trace's beginning without failure;
    None where there is no such step."""
    problem, labels = _labelled(question, steps)
    sound: list[task.StepLabel] = []
    for label in labels:
        if label.failure not in (None, "misread", "inter"):
            break
        if label.failure != "inter":
            sound.append(label)
    places = [i for i, label in enumerate(sound) if label.kind in ("next", "leap")]
    if not places:
        return None
    at = rng.choice(places)
    kept = [label.text for label in sound[:at]]
    operations, value, result = _parsed(sound[at].text)
    if level == "intra":
        slip = (result + rng.randint(1, 9)) % 10
        wrong = [task.step_text(operations, value, slip)]
        return _Example(problem, kept, wrong, level).written(rng)
    check = task.check_text(operations, value, result, _meaning(kept))
    kept += [sound[at].text, check]
    return _Example(problem, kept, [check] * rng.randint(*STUCK), level).written(rng)


def _labelled(question: str, steps: Sequence[str]) -> tuple[task.Problem, list[task.StepLabel]]:
    problem = task.Problem.parse(question)
    return problem, task.steps_of(problem, steps)


def _parsed(step: str) -> tuple[tuple[str, ...], int, int]:
    """Operations, value and result of a step that takes operations."""
    match = _STEP.fullmatch(step)
    assert match is not None, step
    return tuple(match[1].split()), int(match[2]), int(match[3])


def _meaning(steps: Sequence[str]) -> str:
    """How an ambiguous operator is read in these steps."""
    return task.reading("\n".join(steps)) or task.RIGHT


class _Example:
    """The parts of an example, from the steps before the failure and the failing ones."""

    def __init__(
        self, problem: task.Problem, kept: Sequence[str], wrong: Sequence[str], level: str
    ):
        self.problem, self.kept, self.wrong, self.level = problem, kept, wrong, level
        self.meaning = _meaning(kept)

    def written(self, rng: Random) -> Rewritten | None:
        """The example, its rest at random; None where the failing steps aren't failing."""
        found = self.unstuck() if self.level == "inter" else self.mended()
        if found is None:
            return None
        repair, value, at = found
        rest, value = self.rest(value, at, rng)
        answer = task.answer_text(self.problem, value, self.meaning)
        body = "".join(f"\n\n{step}" for step in rest)
        return Rewritten(
            "<think>\n" + "".join(f"{step}\n\n" for step in self.kept),
            "".join(f"{step}\n\n" for step in self.wrong),
            repair,
            f"{body}\n</think>\n\n{answer}",
        )

    def labels(self) -> list[task.StepLabel]:
        """What the failing steps are, after those before them."""
        return task.steps_of(self.problem, [*self.kept, *self.wrong])[len(self.kept) :]

    def mended(self) -> tuple[str, int, int] | None:
        """The repair of a wrong step, the value it leaves, and the number of the next operation."""
        label, *more = self.labels()
        stated, right = _STEP.fullmatch(label.text), _STEP.fullmatch(label.right)
        if label.failure != "intra":
            return None
        # A check is of the latest step, and finds nothing but a wrong result.
        if (
            (stated and right and not more)
            and stated.groups()[:2] == right.groups()[:2]
            and stated[3] != right[3]
        ):
            operations, value, result = _parsed(label.right)
            check = task.check_text(operations, value, int(stated[3]), self.meaning)
            return check, result, self.problem.operations.index(operations[-1]) + 1
        return task.restart_text(self.problem), self.problem.start, 0

    def unstuck(self) -> tuple[str, int, int] | None:
        """The step that goes on after needless checks, the value and the next operation."""
        *more, label = self.labels()
        if any(one.failure != "inter" for one in (*more, label)):
            return None
        if label.right == task.FINISH:
            match = _LEFT.fullmatch(label.text) or _UNDONE.fullmatch(label.text)
            assert match is not None, label.text
            return task.FINISH, int(match[1]), len(self.problem.operations)
        operations, _, result = _parsed(label.right)
        return label.right, result, self.problem.operations.index(operations[-1]) + 1

    def rest(self, value: int, at: int, rng: Random) -> tuple[list[str], int]:
        """The steps from an operation on, each right, checked at most once; the final value."""
        written: list[str] = []
        n = len(self.problem.operations)
        while at < n:
            size = min(rng.choice((2, 2, 3)), n - at) if rng.random() < LEAP else 1
            operations = self.problem.operations[at : at + size]
            before = value
            for operation in operations:
                value = task.apply(operation, value, self.meaning)
            written.append(task.step_text(operations, before, value))
            if rng.random() < CHECK:
                written.append(task.check_text(operations, before, value, self.meaning))
            at += size
        return written, value
