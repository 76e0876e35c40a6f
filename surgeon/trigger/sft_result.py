"""What a trigger SFT leaves to read: its artifact, the table of its losses, and the model card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from surgeon import artifact
from surgeon.artifact import part
from surgeon.checkpoint import Checkpoint, CheckpointName
from surgeon.checkpoint.card import card as model_card
from surgeon.checkpoint.card import markdown_table
from surgeon.console import table

MEASURED = ("prefix", "wrong", "diagnose", "continuation")
"""Kinds of segments whose loss is told."""


Embedding = Literal["grown", "reserved rows", "as it was"]


@part
class ExampleCounts:
    """How many examples there were."""

    learned: int
    held_out: int
    too_long: int


@part
class LossEnds:
    """The loss at both ends of training, nats per token."""

    steps: int
    first_loss: float
    last_loss: float


@part
class HeldOutLoss:
    """Kind of segment -> mean -log p of its tokens, nats, on the held-out examples."""

    before: dict[str, float]
    after: dict[str, float]


@artifact.artifact("sft.json")
class TriggerSft:
    """What `surgeon trigger sft` did."""

    checkpoint: CheckpointName
    settings: dict[str, Any]
    result: Literal["adapter", "checkpoint"]
    triggers: dict[str, int]
    """Trigger -> its token id."""
    embedding: Embedding
    examples: ExampleCounts
    training: LossEnds
    held_out_loss: HeldOutLoss
    detectors: dict[str, Any] | None
    """Level -> the report of its detector, where they were trained anew."""
    warnings: list[str]
    out: artifact.Out = Path()
    already: artifact.Already = False


def loss_rows(before: Mapping[str, float], after: Mapping[str, float]) -> list[list[str]]:
    """Kind of segment, its loss before, its loss after."""
    return [
        [kind, f"{before[kind]:.3f}", f"{after[kind]:.3f}"] for kind in MEASURED if kind in after
    ]


def loss_table(before: Mapping[str, float], after: Mapping[str, float], n: int) -> Table:
    """The held-out loss of each part of an example, before and after."""
    losses = table(f"loss of {n} held-out examples", "before", "after")
    for row in loss_rows(before, after):
        losses.add_row(*row)
    return losses


def card(base: Checkpoint, result: TriggerSft) -> str:
    """A README.md with the base, the method, the settings, and what was measured."""
    adapter, settings = result.result == "adapter", result.settings
    names = ["tuning", "merge", "epochs", "lr", "warmup", "decay", "batch_size", "mask_wrong",
             "seed"]  # fmt: skip
    if settings["tuning"] == "lora":
        names += ["rank", "alpha", "targets"]
    examples, losses = result.examples, result.held_out_loss
    loss_head = [f"loss of {examples.held_out} held-out examples", "before", "after"]
    return model_card(
        f"{base.name}, with trigger tokens",
        [
            f"{'A PEFT adapter' if adapter else 'A checkpoint'} made by fine-tuning on traces in "
            "which a trigger token follows a failing step and a diagnosis and repair the trigger "
            "(NeuReasoner). Without a monitor that forces the triggers it is an ordinary model.",
            f"Use it as `{base.spec}+DIR`." if adapter else "",
            f"Base: {base.spec} (`{base.digest}`).",
            "Trigger tokens: "
            + ", ".join(f"`{n}` ({i})" for n, i in result.triggers.items())
            + ".",
            markdown_table(["setting", ""], [[name, settings[name]] for name in names]),
            f"{examples.learned} examples, {result.training.steps} steps.",
            markdown_table(loss_head, loss_rows(losses.before, losses.after))
            if losses.after
            else "",
            _detectors(result),
            "\n".join(f"- Warning: {text}" for text in result.warnings),
        ],
        parents=[base],
        tags=["surgeon", "neureasoner"],
        library="peft" if adapter else "transformers",
    )


def _detectors(result: TriggerSft) -> str:
    """How well the detectors do that were trained anew."""
    if not result.detectors:
        return ""
    rows = []
    for level, report in result.detectors.items():
        values = [report["step_ends"][name][0] for name in ("accuracy", "recall", "auroc")]
        rows.append([level, *("-" if value is None else f"{value:.3f}" for value in values)])
    head = ["level", "accuracy", "recall", "AUROC"]
    return (
        "`monitor.safetensors` watches it; on held-out problems, at step ends:\n\n"
        + markdown_table(head, rows)
    )
