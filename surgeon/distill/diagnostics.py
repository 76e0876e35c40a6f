"""The diagnostics in words: what they say before training, and what they warn of."""

import sys
from pathlib import Path

from surgeon import artifact, lineage
from surgeon.consensus import sentence
from surgeon.distill.evidence import Diagnostics, SetDiagnostics, WorthByLabels
from surgeon.distill.plan import DistillPlan

# Choices of ours.
MANY_TRUNCATED = 0.2
"""Warn above this share of answers that hit the token limit."""
MANY_UNREAD = 0.2
"""Warn above this share of finished answers in which no answer is measured."""
MOSTLY_LENGTH = 0.8
"""Warn above this correlation of a set's size with the answer's length."""
SPEAKS = {"for": "for it", "against": "against it", "neither": "neither for nor against it"}


def write_diagnostics(plan: DistillPlan, diagnostics: Diagnostics, work: Path) -> None:
    """Write the diagnostics to `work` and print them, with the warnings that follow from them."""
    lines = cautions(plan, diagnostics)
    content = {**artifact.jsonable(diagnostics), "warnings": lines}
    lineage.write_json(work / "diagnostics.json", content)
    for line in (*summary(diagnostics), *(f"Warning: {line}" for line in lines)):
        print(line, file=sys.stderr, flush=True)


def summary(measured: Diagnostics) -> list[str]:
    """The diagnostics as text."""
    lines = [
        f"pool                    {measured.pool} questions, {measured.chosen} to train on, "
        f"{measured.truncated:.0%} of the answers truncated",
        f"room for sharpening     {measured.room:.3f}",
    ]
    if measured.labelled is not None:
        lines += labelled_lines(measured.labelled)
    if isinstance(measured, SetDiagnostics):
        low, high = measured.entropy_gap_interval
        lines += [
            f"entropy gap             {measured.entropy_gap:+.4f} nats per token "
            f"({low:+.4f} to {high:+.4f}; teacher {measured.teacher_entropy:.4f}, student "
            f"{measured.student_entropy:.4f})",
            *(f"accuracy gap            {gap.sentence()}" for gap in measured.accuracy_gaps),
            *([] if measured.signal is None else [told(measured)]),
            f"mean Jaccard distance   {measured.mean_jaccard_distance:.3f}",
            "consensus s(x)          "
            + (f"{measured.consensus_chosen:.0f} where chosen, " if measured.selects else "")
            + f"{measured.consensus_pool:.0f} in the pool",
            f"demonstrations          {measured.shots:.1f} per question, "
            f"{measured.demonstrations_dropped} dropped for length",
        ]
    lines += [
        f"{verdict.method:<23} {SPEAKS[verdict.speaks]}: {verdict.why}"
        for verdict in measured.verdicts
    ]
    if measured.verdicts:
        lines.append(f"auto takes              {measured.taken or 'none of them'}")
    return lines


def labelled_lines(found: WorthByLabels) -> list[str]:
    """What labels say of the pool, and whether training reads them."""
    use = "labels, the reward" if found.rewarded else "labels, not used"
    lines = [
        f"{use:<23} Maj {found.maj:.3f} - Avg {found.avg:.3f} = "
        f"{found.maj - found.avg:+.3f} on {found.questions} questions (Tab. 5)"
    ]
    if found.signal is not None:
        lines.append(f"s(x) against labels     {sentence(found.signal)}")
    return lines


def told(measured: SetDiagnostics) -> str:
    """Which end of the pool is the reliable one, by the vote of its own answers."""
    assert measured.signal is not None
    trained = f"; {measured.select} is trained on" if measured.selects else ""
    return f"s(x) against the vote   {sentence(measured.signal)}{trained}"


def cautions(plan: DistillPlan, measured: Diagnostics) -> list[str]:
    """Plain sentences on why training may not help; empty when nothing speaks against it."""
    lines = []
    if measured.truncated > MANY_TRUNCATED:
        lines.append(
            f"{measured.truncated:.0%} of the answers were cut at {plan.settings.sampling.end}; "
            "they vote for nothing and demonstrate nothing."
        )
    if measured.unread > MANY_UNREAD:
        lines.append(
            f"In {measured.unread:.0%} of the finished answers {plan.settings.answer!r} finds "
            "nothing to vote with, so the room for sharpening looks larger than it is. Choose "
            "another --answer."
        )
    if isinstance(measured, SetDiagnostics) and (
        not measured.verdicts or measured.taken == "nopsd"
    ):
        lines += _cautions_of_sets(plan, measured)
    return lines


def _cautions_of_sets(plan: DistillPlan, measured: SetDiagnostics) -> list[str]:
    """What speaks against the teacher, the demonstrations or the selection."""
    lines = []
    low, high = measured.entropy_gap_interval
    if high >= 0:
        lines.append(
            f"The teacher is not clearly sharper than the student: entropy gap "
            f"{measured.entropy_gap:+.4f} nats per token ({low:+.4f} to {high:+.4f}). In the paper "
            "the pools with gaps of +0.001 and -0.002 gained nothing, those with -0.010 and -0.017 "
            "gained 2.9 and 2.3 points (Tab. 1, 6)."
        )
    lines += [
        f"The teacher is not clearly more often right than the student, by {gap.against}: "
        f"{gap.gap:+.3f} ({gap.interval[0]:+.3f} to {gap.interval[1]:+.3f}). Training is expected "
        "to gain about as much (He et al.)."
        for gap in measured.accuracy_gaps
        if gap.interval[0] <= 0
    ]
    end = None if measured.signal is None else measured.signal.end
    if end is not None and {end, measured.select} == {"bottom", "top"}:
        lines.append(
            f"In this pool the answers at the {end} of s(x) agree with the vote more often, and "
            f"the {measured.select} is trained on. --select {end} takes them, --select auto would."
        )
    if end is None and plan.selection.select == "auto":
        lines.append(
            "Which end of s(x) is the reliable one isn't clear on "
            f"{0 if measured.signal is None else measured.signal.responses} questions; auto took "
            "the bottom, as the paper does. A larger --diagnose asks more."
        )
    if abs(measured.consensus_length_r or 0.0) > MOSTLY_LENGTH:
        lines.append(
            f"The size of the sets follows the answers' length (r = "
            f"{measured.consensus_length_r:.2f}): the selection is nearly one by length."
        )
    if measured.questions_with_dropped:
        lines.append(
            f"{measured.demonstrations_dropped} demonstrations of "
            f"{measured.questions_with_dropped} questions were dropped to fit "
            f"{plan.teacher_tokens} tokens."
        )
    return lines
