"""A writer of your own: after a failing step, think about the rest of the question once more.

    cd examples; surgeon trigger reconstruct CHECKPOINT --labels runs/labels \
        --source my_writer:second_thought --failures own --out runs/examples

The function gets what is to be mended and a source of chance. It returns the texts of the example:
what stands before the failing step, the step itself, its diagnosis, and how the response goes on;
or None where it can't mend the failure.
"""

from random import Random

from surgeon.judges.finding import Assignment, Rewritten


def second_thought(assignment: Assignment, rng: Random) -> Rewritten | None:
    if assignment.made or assignment.answer is None:
        return None
    wrong = "".join(assignment.steps[assignment.first : assignment.last + 1]).strip()
    opening = rng.choice(("Wait.", "Hold on."))
    closing = f"\n{assignment.tags[1]}\n\n" if assignment.thinking else "\n\n"
    return Rewritten(
        prefix=assignment.before,
        wrong=f"{wrong}\n\n",
        diagnose=f"{opening} That step doesn't hold.",
        continuation=f"{closing}Answer: {assignment.answer}",
    )
