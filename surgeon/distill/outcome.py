"""What a distillation leaves: an adapter or a checkpoint, its card, and what is printed of it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from surgeon import artifact, lineage
from surgeon.artifact import part
from surgeon.checkpoint import CheckpointName
from surgeon.checkpoint.card import card as model_card
from surgeon.checkpoint.card import fenced, markdown_table
from surgeon.console import announce, console, say, table, warn
from surgeon.distill.diagnostics import cautions, summary
from surgeon.distill.evidence import Diagnostics, PoolEvidence, SetDiagnostics
from surgeon.distill.plan import DistillPlan
from surgeon.distill.pool import stored_answers
from surgeon.distill.validation import BEST, Validated, outcome
from surgeon.training import processes
from surgeon.training.outputs import write_result
from surgeon.training.state import History, forget_states
from surgeon.training.student import Student

WINDOW = 10
"""Steps at both ends of training that are averaged for the report."""
CARD_METRICS = (
    "loss", "reward", "student_entropy", "teacher_entropy", "agreement", "length", "truncated",
)  # fmt: skip
METRICS = (*CARD_METRICS, "alike", "taught", "tokens_per_s")
RUN_SETTINGS = ("steps", "batch_size", "lr")
TUNING_SETTINGS = ("tuning", "rank", "targets", "max_tokens", "seed")
SET_SETTINGS = ("select", "share", "context", "shots", "sets", "activation", "top_global")


@part
class Ends:
    """A metric at both ends of training, the mean over `window` steps each."""

    first: float
    last: float


@part
class TrainingCost:
    """What training took: seconds of the first process, and tokens."""

    rollout_seconds: float
    """Rollouts and their rewards, or finding examples."""
    teacher_seconds: float
    """Passes of the teacher, or of where the student started."""
    student_seconds: float
    """The student's passes and updates."""
    answered: int
    """Tokens generated before training."""
    generated: int
    """Tokens generated in training."""

    def sentence(self) -> str:
        """The parts of the time, and the tokens."""
        total = self.rollout_seconds + self.teacher_seconds + self.student_seconds
        shares = [
            f"{name} {seconds / total:.0%}"
            for name, seconds in (
                ("rollouts", self.rollout_seconds), ("teacher", self.teacher_seconds),
                ("student", self.student_seconds),
            )
            if seconds and total
        ]  # fmt: skip
        return (
            f"{total:,.0f} s of training: {', '.join(shares)}; tokens generated: "
            f"{self.answered:,} before it, {self.generated:,} in it"
        )


@artifact.artifact("distill.json")
class Distillation:
    """What `surgeon distill` did."""

    checkpoint: CheckpointName
    settings: dict[str, Any]
    diagnostics: SetDiagnostics | Diagnostics
    training: dict[str, int | Ends]
    """`steps`, `window`, and the metrics at both ends."""
    warnings: list[str]
    validated: Validated | None = None
    """How labelled problems chose the step; None where they didn't."""
    rewarded_by: int = 0
    """Labelled questions by whose answers training was rewarded; 0 where it read no label."""
    cost: TrainingCost | None = None
    """None in runs made before it was measured."""
    result: Literal["adapter", "checkpoint"]
    out: artifact.Out = Path()
    already: artifact.Already = False

    @property
    def metrics(self) -> dict[str, Ends]:
        """Metric -> its value at both ends of training."""
        return {name: ends for name, ends in self.training.items() if isinstance(ends, Ends)}


def write(
    plan: DistillPlan, evidence: PoolEvidence, student: Student, history: History, work: Path
) -> Distillation:
    """Write weights and card into `work`; what `distill.json` will hold."""
    chosen = outcome(work / "training", len(plan.validation))
    result = replace(  # pyright: ignore
        conclusion(plan, evidence, history), validated=chosen, cost=cost_of(history, work)
    )
    weights = student.weights()

    def write_files() -> None:
        write_result(plan.checkpoint, student, weights, work, merge=plan.settings.merge)
        lineage.write_text(work / "README.md", card(plan, result))
        forget_states(work)
        (work / "training" / BEST).unlink(missing_ok=True)

    processes.first(student.accelerator, write_files)
    return result


def conclusion(plan: DistillPlan, evidence: PoolEvidence, history: History) -> Distillation:
    """The content of `distill.json`."""
    return Distillation(
        checkpoint=CheckpointName.of(plan.checkpoint),
        settings=lineage.plain(
            {
                **plan.run.arguments,
                "seed": plan.settings.seed,
                "lr": plan.schedule.lr,
                "steps": plan.steps,
            }
        ),
        diagnostics=evidence.diagnostics,
        training={
            "steps": len(history.records),
            "window": WINDOW,
            **ends_of(history.records),
        },
        warnings=[*cautions(plan, evidence.diagnostics), *history.warnings.values()],
        rewarded_by=len(evidence.chosen) if plan.method.needs_labels else 0,
        result="adapter" if plan.settings.writes_adapter else "checkpoint",
    )


def cost_of(history: History, work: Path) -> TrainingCost:
    """What the steps took, and what was generated."""

    def total(name: str, times: str | None = None) -> float:
        return sum(row.get(name, 0.0) * (row[times] if times else 1.0) for row in history.records)

    sides = (stored_answers(work / name) for name in ("rollouts", "teacher"))
    answers = [trace for side in sides for trace in side.values()]
    return TrainingCost(
        rollout_seconds=total("rollout_seconds"),
        teacher_seconds=total("teacher_seconds"),
        student_seconds=total("student_seconds"),
        answered=sum(len(trace.token_ids) for trace in answers),
        generated=round(total("generated", "responses")),
    )


def ends_of(records: Sequence[Mapping[str, float]]) -> dict[str, Ends]:
    """The metrics that were recorded, at both ends of training."""
    return {
        name: Ends(
            first=float(np.mean([record[name] for record in records[:WINDOW]])),
            last=float(np.mean([record[name] for record in records[-WINDOW:]])),
        )
        for name in METRICS
        if name in records[0]
    }


# --- in words -------------------------------------------------------------------------------------


def card(plan: DistillPlan, result: Distillation) -> str:
    """A README.md with the base, the method, what was seen before training and during it."""
    base, settings = plan.checkpoint, result.settings
    adapter = result.result == "adapter"
    names = (
        (*SET_SETTINGS, *RUN_SETTINGS, "ema", "ema_rate", *TUNING_SETTINGS)
        if plan.method.needs_sets
        else ("samples", "answer", *RUN_SETTINGS, *TUNING_SETTINGS)
    )
    what = "A PEFT adapter" if adapter else "A checkpoint"
    return model_card(
        f"{base.name}, distilled from itself",
        [
            f"{what} made by {plan.method.what}. {read_labels_line(result)}",
            f"Use it as `{base.spec}+DIR`." if adapter else "",
            f"Base: {base.spec} (`{base.digest}`).",
            markdown_table(["setting", ""], [[name, settings[name]] for name in names]),
            "Before training:",
            fenced("\n".join(summary(result.diagnostics))),
            markdown_table(*training_table(result, CARD_METRICS)),
            result.cost.sentence() + "." if result.cost else "",
            "\n".join(f"- Warning: {text}" for text in result.warnings),
        ],
        parents=[base],
        tags=["surgeon", settings["method"]],
        library="peft" if adapter else "transformers",
    )


def read_labels_line(result: Distillation) -> str:
    """Whether labels had a say."""
    said = []
    if result.rewarded_by:
        said.append(
            f"Labelled: training was rewarded by the answers to {result.rewarded_by} questions."
        )
    if result.validated is not None:
        said.append(
            f"The weights of step {result.validated.step} were chosen on "
            f"{result.validated.problems} labelled problems."
        )
    if not said:
        return "No label was read in training."
    return " ".join([*said, "No other label was read in training."])


def training_table(result: Distillation, names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: each metric in the first and the last steps of training."""
    steps = result.training["steps"]
    n = min(WINDOW, int(steps))  # pyright: ignore[reportArgumentType]
    rows = [
        [name.replace("_", " "), f"{ends.first:.4g}", f"{ends.last:.4g}"]
        for name, ends in result.metrics.items()
        if name in names
    ]
    return [f"of {steps} steps", f"first {n}", f"last {n}"], rows


def show(result: Distillation) -> None:
    """Print a distillation: diagnostics, training, warnings, where the result is; of several
    processes the first one does."""
    if not processes.is_first():
        return
    announce(result.already, "This distillation")
    for line in summary(result.diagnostics):
        say(line)
    head, rows = training_table(result, METRICS)
    metrics = table(*head)
    for row in rows:
        metrics.add_row(*row)
    console().print(metrics)
    if result.cost is not None:
        say(result.cost.sentence())
    if result.validated is not None or result.rewarded_by:
        say(read_labels_line(result))
    warn(result.warnings)
    use = f"; use it as {result.checkpoint.spec}+{result.out}" if result.result == "adapter" else ""
    say(f"{result.result} in {result.out}{use}")
