"""The exact judge of the built-in task: where a trace fails, and how badly, by its own rules."""

from collections.abc import Sequence

from surgeon.builtin import task
from surgeon.judges.finding import Finding


def judge(question: str, steps: Sequence[str]) -> list[Finding]:
    """The findings for the whole steps of a trace; raises `BadInput` for another task's question.

    `intra`: each wrong step. `inter`: each run of consecutive checks of what was checked already.
    `instance`: one finding for the whole trace: an easy problem, failing where it was started over
    without a mistake, or a hard one.
    """
    problem = task.Problem.parse(question)
    labels = task.steps_of(problem, steps)
    found: list[Finding] = []
    for label in labels:
        if label.failure == "intra":
            reason = f"it should read: {label.right}"
            found.append(Finding("intra", label.index, label.index, reason))
        elif label.failure == "inter":
            goes_on = found and found[-1].level == "inter" and found[-1].last == label.index - 1
            first = found.pop().first if goes_on else label.index
            # Each check is a step, so each step is an attempt.
            attempts = tuple(range(first, label.index + 1))
            found.append(Finding("inter", first, label.index, "checked before", attempts=attempts))
    if steps:
        found.append(_instance(problem, labels))
    return found


def _instance(problem: task.Problem, labels: Sequence[task.StepLabel]) -> Finding:
    last = len(labels) - 1
    if len(problem.operations) > task.EASY:
        return Finding("instance", 0, last, "hard", failing=False, contrast=True)
    over = any(label.failure == "instance" for label in labels)
    reason = "easy, and started over without a mistake" if over else "easy, and thought once"
    return Finding("instance", 0, last, reason, failing=over)
