"""Stage 5, `surgeon trigger sft`: teach a checkpoint its triggers; it then carries its monitor."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from surgeon import artifact, lineage
from surgeon.checkpoint import (
    Checkpoint,
    CheckpointName,
    adapter_digest,
    merge_adapter,
    open_adapter,
    placement,
)
from surgeon.console import announce, console, say, warn
from surgeon.errors import BadInput
from surgeon.families import open_checkpoint
from surgeon.settings import record, verb
from surgeon.settings.neureasoner import DetectorTraining, WatchSettings
from surgeon.settings.training import Schedule
from surgeon.settings.trigger_sft import SftSettings
from surgeon.training import processes
from surgeon.training.loop import Batch, fit
from surgeon.training.memory import micro_tokens, tokens_without_gradients
from surgeon.training.outputs import write_result
from surgeon.training.sequences import nll_loss, require_plain_logits, targets
from surgeon.training.state import forget_states
from surgeon.training.student import Student
from surgeon.training.tuning import tune
from surgeon.trigger.artifacts import Labels, read_labels
from surgeon.trigger.detectors import Detection, detector_table, fit_detectors, require_labels
from surgeon.trigger.examples import (
    Encoded,
    Example,
    encode_example,
    loss_by_kind,
    micro_batches,
    read_examples,
)
from surgeon.trigger.sft_result import (
    Embedding,
    ExampleCounts,
    HeldOutLoss,
    LossEnds,
    TriggerSft,
    card,
    loss_table,
)
from surgeon.trigger.tokens import add_triggers, prepare_rows, rows_of
from surgeon.watch.monitor import Monitor, locate

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

LEARNING_RATES = {"full": 1e-5, "lora": 1e-4}
"""That of full weights is the paper's (E.4)."""


class SftPlan(NamedTuple):
    """Trigger SFT whose inputs have been checked; nothing has been computed yet."""

    settings: SftSettings
    schedule: Schedule
    """With a learning rate."""
    checkpoint: Checkpoint
    learned: list[Encoded]
    tested: list[Encoded]
    """Kept from training, to measure the loss on."""
    too_long: int
    """Examples beyond the context, left out."""
    tokenizer: "PreTrainedTokenizerBase"
    """With the triggers in it."""
    triggers: list[str]
    new_ids: list[int]
    """Of the triggers that the checkpoint didn't know."""
    monitor: Monitor | None
    labels: Labels | None
    detecting: DetectorTraining
    negatives: str
    device: str
    dtype: torch.dtype | None
    run: lineage.Run

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.learned) // self.settings.batches.batch_size)

    @property
    def steps(self) -> int:
        """Optimizer steps; the last one of an epoch may have fewer examples."""
        return max(1, round(self.settings.epochs * self.steps_per_epoch))


@verb(SftSettings)
def sft(settings: SftSettings) -> TriggerSft:
    """Train a checkpoint on reconstructed examples, with prompt and trigger masked (Eq. 6-7).

    Writes a checkpoint or an adapter, with `sft.json`, to the directory `out`; with a monitor the
    result carries it. A killed run resumes when it is called again, a finished one is not computed
    again. Runs under `torchrun` and `accelerate launch` too. Raises `BadInput` before the model is
    loaded for what can be checked.
    """
    plan = prepare(settings)
    return processes.once(
        settings.out, TriggerSft, lambda accelerator, work: teach(plan, accelerator, work),
        run=plan.run, device=plan.device, tracker=settings.batches.tracker,
    )  # fmt: skip


# --- what is checked before the model is loaded ---------------------------------------------------


def prepare(settings: SftSettings) -> SftPlan:
    """Check the settings against files and headers; raises `BadInput`."""
    processes.require_launch(settings.batches.tracker)
    device, dtype = placement(settings.machine.device, settings.machine.dtype)
    lr = settings.schedule.lr or LEARNING_RATES[settings.tuning.weights]
    checkpoint = open_checkpoint(settings.checkpoint)
    examples = read_examples(settings.examples)
    monitor = None if settings.monitor is None else Monitor.load(settings.monitor, checkpoint)
    refit = settings.labels if monitor is not None and settings.refit else None
    tokenizer = checkpoint.tokenizer()
    labels = None if refit is None else read_labels(refit, checkpoint, tokenizer)
    watched = monitor.settings if monitor else WatchSettings()
    triggers = list(watched.triggers.values())
    _require_triggers(examples, triggers, settings.examples)
    new_ids = add_triggers(tokenizer, triggers)
    if settings.writes_adapter and new_ids and max(new_ids) >= rows_of(checkpoint):
        raise BadInput(
            f"{checkpoint.spec} has no reserved row for {', '.join(triggers)}, and an adapter "
            "can't add rows to its base: use merge, or tuning=full."
        )
    detecting, negatives = _detecting(settings.monitor, settings.seed)
    if monitor is not None and labels is not None:
        require_labels(labels, monitor.levels, negatives)
    learned, tested, too_long = _encoded(checkpoint, tokenizer, examples, settings)
    inputs = {
        "checkpoint": checkpoint.digest,
        "examples": lineage.digest_of([list(example) for example in examples]),
    }
    if settings.monitor is not None:
        inputs["monitor"] = lineage.file_digest(locate(settings.monitor))
    if labels is not None:
        inputs["labels"] = labels.digest
    arguments = record(settings) | {"checkpoint": checkpoint.spec, "lr": lr}
    return SftPlan(
        settings, replace(settings.schedule, lr=lr), checkpoint, learned, tested, too_long,
        tokenizer, triggers, new_ids, monitor, labels, detecting, negatives, device, dtype,
        lineage.Run("trigger-sft", arguments, inputs, settings.seed),
    )  # fmt: skip


def _require_triggers(examples: Sequence[Example], triggers: Sequence[str], where: Path) -> None:
    """Raise `BadInput` for an example without one of the triggers, or with another."""
    for example in examples:
        there = [part.text for part in example.segments if part.kind == "trigger"]
        if not there or any(text not in triggers for text in there):
            raise BadInput(
                f"{where}: example {example.id!r} has the trigger {there[:1] or None}, expected "
                f"one of {', '.join(triggers)}."
            )


def _detecting(monitor: Path | None, seed: int) -> tuple[DetectorTraining, str]:
    """How detectors are trained anew: as those of the monitor were, where that is known."""
    training, negatives = DetectorTraining(seed=seed), "all"
    if monitor is None:
        return training, negatives
    file = locate(monitor).with_name(Detection.FILE)  # pyright: ignore[reportAttributeAccessIssue]
    if not file.is_file():
        return training, negatives
    settings = lineage.read_object(file).get("settings", {})
    fields = {name: settings[name] for name in training.__dataclass_fields__ if name in settings}
    return replace(training, **{**fields, "seed": seed}), settings.get("negatives", negatives)


def _encoded(
    checkpoint: Checkpoint,
    tokenizer: "PreTrainedTokenizerBase",
    examples: Sequence[Example],
    settings: SftSettings,
) -> tuple[list[Encoded], list[Encoded], int]:
    """Examples as tokens: to learn, to be tested on (those of a prompt together), and how many are
    longer than the context."""
    encoded = [
        encode_example(
            tokenizer,
            e,
            mask_wrong=settings.mask_wrong,
            thinking=settings.thinking,
            template=settings.template,
        )
        for e in examples
    ]
    pairs = zip(examples, encoded, strict=True)
    fitting = [pair for pair in pairs if len(pair[1].ids) <= checkpoint.context]
    if not fitting:
        raise BadInput(f"every example is longer than the context of {checkpoint.context} tokens.")
    problems = sorted({example.problem for example, _ in fitting})
    order = np.random.default_rng(settings.seed).permutation(len(problems))
    n = min(round(settings.held_out * len(problems)), len(problems) - 1)
    kept = {problems[i] for i in order[:n]}
    learned = [one for example, one in fitting if example.problem not in kept]
    tested = [one for example, one in fitting if example.problem in kept]
    return learned, tested, len(encoded) - len(fitting)


# --- the work -------------------------------------------------------------------------------------


def teach(plan: SftPlan, accelerator: "Accelerator", work: Path) -> TriggerSft:
    """Train, write weights and card into `work`, carry the monitor."""
    embedding, losses, ends = _train(plan, accelerator, work)
    ids: Any = plan.tokenizer.convert_tokens_to_ids(plan.triggers)
    result = TriggerSft(
        checkpoint=CheckpointName.of(plan.checkpoint),
        settings=lineage.plain({**plan.run.arguments, "seed": plan.settings.seed}),
        result="adapter" if plan.settings.writes_adapter else "checkpoint",
        triggers=dict(zip(plan.triggers, ids, strict=True)),
        embedding=embedding,
        examples=ExampleCounts(
            learned=len(plan.learned), held_out=len(plan.tested), too_long=plan.too_long
        ),
        training=ends,
        held_out_loss=losses,
        detectors=None,
        warnings=[f"{plan.too_long} examples were longer than the context."][: plan.too_long],
    )
    return processes.first(accelerator, lambda: _carry_monitor(plan, result, work))


def _train(
    plan: SftPlan, accelerator: "Accelerator", work: Path
) -> tuple[Embedding, HeldOutLoss, LossEnds]:
    """Train and write the weights; the model is let go of, for the monitor's refit loads what was
    written."""
    tested = tokens_without_gradients(plan.settings.batches.micro_tokens)
    model: Any = plan.checkpoint.model(plan.device, plan.dtype).to(accelerator.device)  # pyright: ignore
    grew = prepare_rows(model, plan.new_ids)
    require_plain_logits(model, plan.learned[0].ids)
    before = loss_by_kind(model, plan.tested, tested)
    bf16 = accelerator.device.type == "cuda" and model.dtype is torch.bfloat16
    adapter = tune(model, plan.settings.tuning, rows=plan.new_ids, seed=plan.settings.seed)
    parallel = plan.settings.batches.parallel
    student = Student(model, accelerator, adapter, parallel=parallel, bf16=bf16)
    fits = micro_tokens(student, plan.settings.batches.micro_tokens, work / "training")
    with processes.tracking(accelerator, plan.run.arguments):
        records = fit(
            student, batches(plan, accelerator, fits), nll_loss, work / "training",
            steps=plan.steps, schedule=plan.schedule,
        ).records  # fmt: skip
    with torch.no_grad():
        after = student(loss_by_kind, plan.tested, tested)
    weights = student.weights()
    processes.first(
        accelerator,
        lambda: write_result(
            plan.checkpoint, student, weights, work, merge=plan.settings.merge,
            tokenizer=plan.tokenizer, prepare=lambda fresh: prepare_rows(fresh, plan.new_ids),
        ),
    )  # fmt: skip
    return (
        "grown" if grew else "reserved rows" if plan.new_ids else "as it was",
        HeldOutLoss(before=before, after=after),
        LossEnds(steps=len(records), first_loss=records[0]["loss"], last_loss=records[-1]["loss"]),
    )


def batches(
    plan: SftPlan, accelerator: "Accelerator", micro_tokens: int
) -> Callable[[int], Iterator[Batch]]:
    """`batches(step)`: every example once per epoch, in an order of the epoch's own.

    The loss is the mean over the learned tokens of the whole batch, whichever process has them.
    """
    size = plan.settings.batches.batch_size

    def from_step(start: int) -> Iterator[Batch]:
        for step in count(start):
            epoch, place = divmod(step, plan.steps_per_epoch)
            order = np.random.default_rng([plan.settings.seed, epoch]).permutation(
                len(plan.learned)
            )
            drawn = order[place * size : (place + 1) * size]
            share = [
                plan.learned[i]
                for i in drawn[accelerator.process_index :: accelerator.num_processes]
            ]
            tokens = sum(sum(example.learned[1:]) for example in share)
            micros = micro_batches(share, micro_tokens)
            if not micros:
                # An epoch's last batch may be smaller than the number of processes, which all have
                # to take part: without an example of its own one runs another's and learns nothing.
                ids = plan.learned[drawn[0]].ids
                micros = [targets([ids], [[False] * len(ids)])]
            yield Batch(micros, weight=tokens, tokens=tokens, responses=len(share), sums={})

    return from_step


def _carry_monitor(plan: SftPlan, result: TriggerSft, work: Path) -> TriggerSft:
    """Refit the monitor on the tuned weights, write the card, and put the monitor beside it."""
    monitor = plan.monitor
    if monitor is not None and plan.labels is not None:
        monitor, result = _refitted(plan, monitor, plan.labels, result, work)
    lineage.write_text(work / "README.md", card(plan.checkpoint, result))
    if monitor is not None:
        artifact.write(work, result)
        # Last: the monitor is bound to the digest of all the other files.
        digest = (
            adapter_digest(plan.checkpoint.digest, open_adapter(work))
            if plan.settings.writes_adapter
            else Checkpoint.open(work).digest
        )
        replace(monitor, checkpoint=digest).save(work)
    forget_states(work)
    return result


def _refitted(
    plan: SftPlan, monitor: Monitor, labels: Labels, result: TriggerSft, work: Path
) -> tuple[Monitor, TriggerSft]:
    """The monitor with detectors of the tuned weights, and the result with their reports."""
    merged = work / "merged"
    tuned = (
        merge_adapter(
            plan.checkpoint,
            open_adapter(work),
            f"{plan.checkpoint.spec}+{plan.settings.out}",
            merged,
        )
        if plan.settings.writes_adapter
        else Checkpoint.open(work)
    )
    fitted = fit_detectors(
        tuned.model(plan.device, plan.dtype), tuned.tokenizer(), labels, monitor.channels,
        monitor.settings, plan.detecting, negatives=plan.negatives,
    )  # fmt: skip
    shutil.rmtree(merged, ignore_errors=True)
    channels = {level: monitor.channels[level] for level in fitted.detectors}
    return (
        replace(monitor, channels=channels, detectors=fitted.detectors),
        replace(
            result, detectors=fitted.reports, warnings=[*result.warnings, *fitted.warnings]
        ),
    )  # fmt: skip


# --- what is printed ------------------------------------------------------------------------------


def show(result: TriggerSft) -> None:
    """Print what was learned, the detectors on the tuned weights, and where it all is; of several
    processes the first one does."""
    if not processes.is_first():
        return
    announce(result.already, "This training")
    ids = ", ".join(f"{name} = {i}" for name, i in result.triggers.items())
    say(f"triggers: {ids} (embedding: {result.embedding})")
    training, examples = result.training, result.examples
    say(
        f"{training.steps} steps on {examples.learned} examples: loss {training.first_loss:.3f} "
        f"to {training.last_loss:.3f}"
    )
    losses = result.held_out_loss
    console().print(loss_table(losses.before, losses.after, examples.held_out))
    if result.detectors:
        say("Detectors, trained anew on the tuned weights:")
        console().print(detector_table(result.detectors))
    warn(result.warnings)
    use = f"; use it as {result.checkpoint.spec}+{result.out}" if result.result == "adapter" else ""
    say(f"{result.result} in {result.out}{use}")
