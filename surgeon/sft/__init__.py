"""`surgeon sft`: train a checkpoint on given answers, such as those that `curate` kept.

plan.py      what is checked before the model is loaded
lessons.py   rows as tokens, and the mixture of two files
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch

from surgeon import artifact, lineage
from surgeon.artifact import part
from surgeon.checkpoint import CheckpointName
from surgeon.checkpoint.card import card as model_card
from surgeon.checkpoint.card import markdown_table
from surgeon.console import announce, say, warn
from surgeon.settings import verb
from surgeon.settings.sft import SftTracesSettings
from surgeon.sft.lessons import LearnedFile, Lesson
from surgeon.sft.plan import TracesPlan, prepare
from surgeon.training import processes
from surgeon.training.loop import Batch, fit
from surgeon.training.memory import micro_tokens, tokens_without_gradients
from surgeon.training.outputs import write_result
from surgeon.training.sequences import (
    Targets,
    can_pack,
    grouped,
    nll_loss,
    packed,
    require_plain_logits,
    targets,
    token_nll,
)
from surgeon.training.state import forget_states
from surgeon.training.student import Student
from surgeon.training.tuning import tune

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

NO_PACKING = (
    "this model doesn't keep packed examples apart: every example was trained in a row of its own."
)


@part
class HeldOutAnswers:
    """The loss of the answers to prompts that were kept from training, nats per token."""

    examples: int
    before: float
    after: float


@artifact.artifact("training.json")
class TrainedOnTraces:
    """What `surgeon sft` did."""

    checkpoint: CheckpointName
    settings: dict[str, Any]
    result: Literal["adapter", "checkpoint"]
    files: tuple[LearnedFile, ...]
    examples: int
    """Learned; those held out aren't among them."""
    tokens: int
    """Learned in an epoch."""
    packed: bool
    steps: int
    first_loss: float
    """Nats per token, of the first step."""
    last_loss: float
    held_out: HeldOutAnswers | None
    warnings: tuple[str, ...]
    out: artifact.Out = Path()
    already: artifact.Already = False


@verb(SftTracesSettings)
def sft(settings: SftTracesSettings) -> TrainedOnTraces:
    """Train a checkpoint on given answers (NEX sec. 4.5, 5.4.3; A.13 with `mix`).

    Writes a checkpoint or an adapter, with `training.json`, to the directory `out`. A killed run
    resumes when it is called again, with the numbers it would have had; a finished one is not
    computed again. Runs under `torchrun` and `accelerate launch` too. Raises `BadInput` before the
    model is loaded for what can be checked.
    """
    plan = prepare(settings)
    return processes.once(
        settings.out, TrainedOnTraces, lambda accelerator, work: teach(plan, accelerator, work),
        run=plan.run, device=plan.device, tracker=settings.batches.tracker,
    )  # fmt: skip


class TrainedWeights(NamedTuple):
    """What training says of itself."""

    packed: bool
    losses: list[float]
    """By step."""
    held_out: HeldOutAnswers | None


def teach(plan: TracesPlan, accelerator: "Accelerator", work: Path) -> TrainedOnTraces:
    """Train, and write weights and card into `work`."""
    trained = _train(plan, accelerator, work)
    warnings = plan.warnings
    if plan.settings.pack and not trained.packed:
        warnings = (*warnings, NO_PACKING)
    result = TrainedOnTraces(
        checkpoint=CheckpointName.of(plan.checkpoint),
        settings=lineage.plain({**plan.run.arguments, "seed": plan.settings.seed}),
        result="adapter" if plan.settings.writes_adapter else "checkpoint",
        files=plan.taught.files,
        examples=len(plan.learned),
        tokens=sum(lesson.tokens for lesson in plan.learned),
        packed=trained.packed,
        steps=len(trained.losses),
        first_loss=trained.losses[0],
        last_loss=trained.losses[-1],
        held_out=trained.held_out,
        warnings=warnings,
    )

    def conclude() -> TrainedOnTraces:
        lineage.write_text(work / "README.md", card(plan, result))
        forget_states(work)
        return result

    return processes.first(accelerator, conclude)


def _train(plan: TracesPlan, accelerator: "Accelerator", work: Path) -> TrainedWeights:
    settings = plan.settings
    model: Any = plan.checkpoint.model(plan.device, plan.dtype).to(accelerator.device)  # pyright: ignore
    text = plan.learned[0].ids.tolist()
    require_plain_logits(model, text)
    pack = settings.pack and can_pack(model, text)
    tested = tokens_without_gradients(settings.batches.micro_tokens)
    before = mean_loss(model, plan.tested, tested, pack)
    bf16 = accelerator.device.type == "cuda" and "bfloat16" in str(model.dtype)
    adapter = tune(model, settings.tuning, seed=settings.seed)
    student = Student(model, accelerator, adapter, parallel=settings.batches.parallel, bf16=bf16)
    fits = micro_tokens(student, settings.batches.micro_tokens, work / "training")
    with processes.tracking(accelerator, plan.run.arguments):
        records = fit(
            student, batches(plan, accelerator, fits, pack), nll_loss, work / "training",
            steps=plan.steps, schedule=plan.schedule, what="train (sft)",
        ).records  # fmt: skip
    after = 0.0
    if plan.tested:
        with torch.no_grad():
            after = student(mean_loss, plan.tested, tested, pack)
    weights = student.weights()
    processes.first(
        accelerator,
        lambda: write_result(plan.checkpoint, student, weights, work, merge=settings.merge),
    )
    held_out = HeldOutAnswers(examples=len(plan.tested), before=before, after=after)
    return TrainedWeights(
        pack, [record["loss"] for record in records], held_out if plan.tested else None
    )


def batches(
    plan: TracesPlan, accelerator: "Accelerator", micro_tokens: int, pack: bool
) -> Callable[[int], Iterator[Batch]]:
    """`batches(step)`: every example once per epoch, in an order of the epoch's own.

    The loss is the mean over the learned tokens of the whole batch, whichever process has them.
    """
    size, lessons = plan.settings.batches.batch_size, plan.learned

    def from_step(start: int) -> Iterator[Batch]:
        for step in count(start):
            epoch, place = divmod(step, plan.steps_per_epoch)
            order = np.random.default_rng([plan.settings.seed, epoch]).permutation(len(lessons))
            drawn = order[place * size : (place + 1) * size]
            share = [
                lessons[i] for i in drawn[accelerator.process_index :: accelerator.num_processes]
            ]
            tokens = sum(lesson.tokens for lesson in share)
            micros = micro_targets(share, micro_tokens, pack)
            if not micros:
                # An epoch's last batch may be smaller than the number of processes, which all have
                # to take part: without an example of its own one runs another's and learns nothing.
                ids = lessons[drawn[0]].ids.tolist()
                micros = [targets([ids], [[False] * len(ids)])]
            yield Batch(micros, tokens, tokens, len(share), {"length": float(tokens)})

    return from_step


def micro_targets(lessons: Sequence[Lesson], micro_tokens: int, pack: bool) -> list[Targets]:
    """Examples of similar length together, each group of at most `micro_tokens` padded tokens;
    packed, the short ones of a group share its rows."""
    if not lessons:
        return []
    rows = [lesson.ids.tolist() for lesson in lessons]
    flags = [lesson.learned.tolist() for lesson in lessons]
    groups = grouped([len(row) for row in rows], micro_tokens, pack=pack)
    made = packed if pack else targets
    return [made([rows[b] for b in group], [flags[b] for b in group]) for group in groups]


def mean_loss(
    model: "nn.Module", lessons: Sequence[Lesson], micro_tokens: int, pack: bool
) -> float:
    """-log p of the learned tokens, nats per token; 0 without any."""
    total = n = 0.0
    with torch.no_grad():
        for micro in micro_targets(lessons, micro_tokens, pack):
            total += float(token_nll(model, micro).sum())
            n += len(micro.token_P)
    return total / n if n else 0.0


# --- what is printed ------------------------------------------------------------------------------


def card(plan: TracesPlan, result: TrainedOnTraces) -> str:
    """A README.md with the base, what was learned, the settings, and the losses."""
    adapter, settings = result.result == "adapter", result.settings
    names = ["tuning", "merge", "epochs", "lr", "warmup", "decay", "batch_size", "seed"]
    names += ["rank", "alpha", "targets"] if settings["tuning"] == "lora" else []
    base = plan.checkpoint
    mixed = "" if plan.mixture is None else f" A mixture: {plan.mixture.share:g} of the second."
    files = [[f.file, f.examples, f.tokens, f.cut] for f in result.files]
    return model_card(
        f"{base.name}, trained on given answers",
        [
            f"{'A PEFT adapter' if adapter else 'A checkpoint'} made by supervised fine-tuning; "
            f"only the answers are learned.{mixed}",
            f"Use it as `{base.spec}+DIR`." if adapter else "",
            f"Base: {base.spec} (`{base.digest}`).",
            markdown_table(["file", "examples", "tokens", "cut at a limit"], files),
            markdown_table(["setting", ""], [[name, settings[name]] for name in names]),
            f"{result.steps} steps; {losses(result)}.",
            "\n".join(f"- Warning: {text}" for text in result.warnings),
        ],
        parents=[base],
        tags=["surgeon", "sft"],
        library="peft" if adapter else "transformers",
    )


def losses(result: TrainedOnTraces) -> str:
    """The losses in words."""
    text = f"loss {result.first_loss:.3f} in the first step, {result.last_loss:.3f} in the last"
    if result.held_out is not None:
        held = result.held_out
        text += (
            f"; of {held.examples} held-out examples {held.before:.3f} before, {held.after:.3f} "
            "after"
        )
    return text


def show(result: TrainedOnTraces) -> None:
    """Print what was learned and where it is; of several processes the first one does."""
    if not processes.is_first():
        return
    announce(result.already, "This training")
    for file in result.files:
        say(f"{file.file}: {file.examples} examples, {file.tokens:,} tokens")
    say(f"{result.steps} steps on {result.examples} examples: {losses(result)}")
    warn(result.warnings)
    use = f"; use it as {result.checkpoint.spec}+{result.out}" if result.result == "adapter" else ""
    say(f"{result.result} in {result.out}{use}")
