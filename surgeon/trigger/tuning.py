"""Stage 5, `surgeon trigger sft`: teach a checkpoint its triggers; it then carries its monitor."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from surgeon import lineage
from surgeon.checkpoint import Checkpoint, adapter_digest, merge_adapter, placement
from surgeon.errors import BadInput
from surgeon.families import open_checkpoint
from surgeon.settings.neureasoner import DetectorTraining as Training
from surgeon.settings.neureasoner import WatchSettings as Settings
from surgeon.training import (
    METRICS,
    Schedule,
    Tuning,
    all_weights,
    trainable,
    tune,
    write_adapter,
    write_full,
    write_merged,
)
from surgeon.trigger.artifacts import Labels, read_labels
from surgeon.trigger.card import card, loss_table
from surgeon.trigger.detecting import FILE as DETECTORS
from surgeon.trigger.detecting import NEGATIVES, detector_table, fit_detectors, require_labels
from surgeon.trigger.training import (
    Encoded,
    Example,
    add_triggers,
    encode_example,
    loss_by_kind,
    prepare_rows,
    read_examples,
    rows_of,
    train,
)
from surgeon.watch.monitor import Monitor, locate

if TYPE_CHECKING:
    import torch

FILE = "sft.json"
LEARNING_RATES = {"full": 1e-5, "lora": 1e-4}
"""That of full weights is the paper's (E.4)."""


class Plan(NamedTuple):
    """Trigger SFT whose inputs have been checked; nothing has been computed yet."""

    checkpoint: Checkpoint
    learned: list[Encoded]
    tested: list[Encoded]
    """Kept from training, to measure the loss on."""
    too_long: int
    """Examples beyond the context, left out."""
    tokenizer: Any
    """With the triggers in it."""
    triggers: list[str]
    new_ids: list[int]
    """Of the triggers that the checkpoint didn't know."""
    monitor: Monitor | None
    labels: Labels | None
    detecting: Training
    negatives: str
    tuning: Tuning
    schedule: Schedule
    device: str
    dtype: "torch.dtype | None"
    settings: dict[str, Any]
    inputs: dict[str, str]

    @property
    def is_adapter(self) -> bool:
        """The result is a PEFT adapter."""
        return self.tuning.weights == "lora" and not self.settings["merge"]


def sft(
    checkpoint: str,
    *,
    examples: str | Path,
    out: str | Path,
    monitor: str | Path | None = None,
    labels: str | Path | None = None,
    refit: bool = True,
    tuning: str = "full",
    merge: bool = False,
    epochs: float = 1.0,
    lr: float | None = None,
    warmup: float = 0.05,
    decay: str = "cosine",
    weight_decay: float = 0.0,
    clip: float = 1.0,
    batch_size: int = 64,
    micro_batch: int = 8,
    mask_wrong: bool = True,
    held_out: float = 0.1,
    thinking: bool | None = None,
    rank: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.0,
    targets: str = "all-linear",
    gradient_checkpointing: bool = False,
    save_every: int = 50,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
) -> dict[str, Any]:
    """Train a checkpoint on reconstructed examples, with prompt and trigger masked (Eq. 6-7).

    The triggers become tokens of their own, in reserved rows of the embedding where there are any.
    `tuning` is `full` or `lora`, which trains the new rows only beside its factors and writes an
    adapter (a checkpoint with `merge`). `mask_wrong` leaves the failing steps out of the loss as
    well (R11); Eq. 6 learns them. With `monitor` the result carries it: `refit` trains its
    detectors anew on the tuned weights, from `labels`. A share `held_out` of the problems is kept
    to measure the loss on. Writes a checkpoint or adapter, with `sft.json`, to the directory `out`
    and returns the content of that. A killed run continues when it is called again. Raises
    `BadInput` before the model is loaded for what can be checked.
    """
    plan = prepare(dict(locals()))
    work = lineage.begin(
        out, verb="trigger-sft", arguments=plan.settings, inputs=plan.inputs, seed=seed
    )
    if work is None:
        return {**lineage.read_object(Path(out) / FILE), "out": str(out), "already": True}
    return {**_sft(plan, work, Path(out)), "out": str(out)}


def prepare(given: dict[str, Any]) -> Plan:
    """Check every argument of `sft` against files and headers; raises `BadInput`."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise BadInput("trigger sft runs in one process; it was started in several.")
    for name in ("batch_size", "micro_batch"):
        if given[name] < 1:
            raise BadInput(f"{name} is {given[name]}; it must be at least 1.")
    micro = min(given["micro_batch"], given["batch_size"])
    if given["batch_size"] % micro:
        raise BadInput(
            f"batch_size {given['batch_size']} is no multiple of micro_batch {micro}; choose "
            "another."
        )
    if not 0 < given["epochs"] < 1000:
        raise BadInput(f"epochs is {given['epochs']}; it must be above 0, and below 1000.")
    if not 0 <= given["held_out"] < 1:
        raise BadInput(f"held_out is {given['held_out']}; it must be from 0 to below 1.")
    tuning = Tuning(
        weights=given["tuning"], rank=given["rank"], alpha=given["alpha"],
        dropout=given["dropout"], targets=given["targets"],
        gradient_checkpointing=given["gradient_checkpointing"],
    )  # fmt: skip
    lr = LEARNING_RATES[tuning.weights] if given["lr"] is None else given["lr"]
    schedule = Schedule(
        lr=lr, warmup=given["warmup"], decay=given["decay"], weight_decay=given["weight_decay"],
        clip=given["clip"], save_every=given["save_every"], seed=given["seed"],
    )  # fmt: skip
    where, kind = placement(given["device"], given["dtype"])
    if where.partition(":")[2] not in ("", "0"):
        raise BadInput(
            f"device is {where!r}; transformers' Trainer takes the first one. Choose which that is "
            "with CUDA_VISIBLE_DEVICES."
        )
    opened = open_checkpoint(given["checkpoint"])
    examples = read_examples(given["examples"])
    monitor = None if given["monitor"] is None else Monitor.load(given["monitor"], opened)
    refit = monitor is not None and given["refit"]
    if refit and given["labels"] is None:
        raise BadInput(
            "the monitor's detectors are trained anew on the tuned weights: give the labels "
            "directory, or refit=false to keep them as they are."
        )
    tokenizer = opened.tokenizer()
    labels = read_labels(given["labels"], opened, tokenizer) if refit else None
    triggers = list((monitor.settings if monitor else Settings()).triggers.values())
    _require_triggers(examples, triggers, str(given["examples"]))
    new_ids = add_triggers(tokenizer, triggers)
    grows = bool(new_ids) and max(new_ids) >= rows_of(opened)
    if tuning.weights == "lora" and grows and not given["merge"]:
        raise BadInput(
            f"{opened.spec} has no reserved row for {', '.join(triggers)}, and an adapter can't "
            "add rows to its base: use merge, or tuning=full."
        )
    detecting, negatives = _detecting(given["monitor"], given["seed"])
    if monitor is not None and labels is not None:
        require_labels(labels, monitor.levels, negatives)
    settings = {
        name: value
        for name, value in given.items()
        # These change no number, or are inputs with a digest.
        if name not in ("out", "save_every", "seed", "monitor", "labels", "examples")
    } | {"checkpoint": opened.spec, "lr": lr, "micro_batch": micro}
    inputs = {
        "checkpoint": opened.digest,
        "examples": lineage.digest_of([list(example) for example in examples]),
    }
    if given["monitor"] is not None:
        inputs["monitor"] = lineage.file_digest(locate(given["monitor"]))
    if labels is not None:
        inputs["labels"] = labels.digest
    learned, tested, too_long = _encoded(opened, tokenizer, examples, given)
    return Plan(
        opened, learned, tested, too_long, tokenizer, triggers, new_ids, monitor, labels,
        detecting, negatives, tuning, schedule, where, kind, settings, inputs,
    )  # fmt: skip


def _require_triggers(examples: Sequence[Example], triggers: Sequence[str], where: str) -> None:
    """Raise `BadInput` for an example without one of the triggers, or with another."""
    for example in examples:
        found = [part.text for part in example.segments if part.kind == "trigger"]
        if not found or any(text not in triggers for text in found):
            raise BadInput(
                f"{where}: example {example.id!r} has the trigger {found[:1] or None}, expected "
                f"one of {', '.join(triggers)}."
            )


def _detecting(monitor: str | Path | None, seed: int) -> tuple[Training, str]:
    """How detectors are trained anew: as those of the monitor were, where that is known."""
    training, negatives = Training(seed=seed), NEGATIVES[0]
    if monitor is None:
        return training, negatives
    file = locate(monitor).with_name(DETECTORS)
    if not file.is_file():
        return training, negatives
    settings = lineage.read_object(file).get("settings", {})
    names = {"detector_batch": "batch"}
    known = {names.get(name, name): value for name, value in settings.items()}
    fields = {name: known[name] for name in training.__dataclass_fields__ if name in known}
    return replace(training, **{**fields, "seed": seed}), known.get("negatives", negatives)


def _encoded(
    checkpoint: Checkpoint, tokenizer: Any, examples: Sequence[Example], given: dict[str, Any]
) -> tuple[list[Encoded], list[Encoded], int]:
    """Examples as tokens: to learn, to be tested on (those of a prompt together), and how many are
    longer than the context."""
    limit = checkpoint.context
    encoded = [
        encode_example(tokenizer, e, mask_wrong=given["mask_wrong"], thinking=given["thinking"])
        for e in examples
    ]
    fitting = [pair for pair in zip(examples, encoded, strict=True) if len(pair[1].ids) <= limit]
    if not fitting:
        raise BadInput(f"every example is longer than the context of {limit} tokens.")
    problems = sorted({example.problem for example, _ in fitting})
    order = np.random.default_rng(given["seed"]).permutation(len(problems))
    n = min(round(given["held_out"] * len(problems)), len(problems) - 1)
    kept = {problems[i] for i in order[:n]}
    learned = [one for example, one in fitting if example.problem not in kept]
    tested = [one for example, one in fitting if example.problem in kept]
    return learned, tested, len(encoded) - len(fitting)


# --- the work -------------------------------------------------------------------------------------


def _sft(plan: Plan, work: Path, out: Path) -> dict[str, Any]:
    """Train, write, carry the monitor; what `sft.json` holds."""
    import torch

    micro = plan.settings["micro_batch"]
    model: Any = plan.checkpoint.model(plan.device, plan.dtype)
    grew = prepare_rows(model, plan.new_ids)
    before = loss_by_kind(model, plan.tested, micro)
    bf16 = plan.device.startswith("cuda") and model.dtype is torch.bfloat16
    adapter = tune(model, plan.tuning, rows=plan.new_ids, seed=plan.schedule.seed)
    records = train(
        adapter or model, plan.learned, work / "training", schedule=plan.schedule,
        epochs=plan.settings["epochs"], batch_size=plan.settings["batch_size"], micro_batch=micro,
        device=plan.device, bf16=bf16,
    )  # fmt: skip
    after = loss_by_kind(model, plan.tested, micro)
    text = "".join(json.dumps(record) + "\n" for record in records)
    lineage.write_text(work / "training" / METRICS, text)
    if adapter is None:
        write_full(plan.checkpoint, model, all_weights(model), work, tokenizer=plan.tokenizer)
    elif plan.settings["merge"]:
        write_merged(
            plan.checkpoint, adapter, trainable(model), work, tokenizer=plan.tokenizer,
            prepare=lambda fresh: prepare_rows(fresh, plan.new_ids),
        )  # fmt: skip
    else:
        write_adapter(plan.checkpoint, adapter, trainable(model), work)
        plan.tokenizer.save_pretrained(work)
    del model, adapter
    result = {
        "checkpoint": {"spec": plan.checkpoint.spec, "digest": plan.checkpoint.digest},
        "settings": lineage.plain({**plan.settings, "seed": plan.schedule.seed}),
        "result": "adapter" if plan.is_adapter else "checkpoint",
        "triggers": dict(
            zip(plan.triggers, plan.tokenizer.convert_tokens_to_ids(plan.triggers), strict=True)
        ),
        "embedding": "grown" if grew else "reserved rows" if plan.new_ids else "as it was",
        "examples": {"learned": len(plan.learned), "held_out": len(plan.tested),
                     "too_long": plan.too_long},
        "training": {"steps": len(records), "first_loss": records[0]["loss"],
                     "last_loss": records[-1]["loss"]},
        "held_out_loss": {"before": before, "after": after},
        "detectors": None,
        "warnings": [f"{plan.too_long} examples were longer than the context."][: plan.too_long],
    }  # fmt: skip
    _finish(plan, result, work, out)
    return result


def _finish(plan: Plan, result: dict[str, Any], work: Path, out: Path) -> None:
    """Refit the monitor, write what is said of the result, and give it its name."""
    monitor = plan.monitor
    if monitor is not None and plan.labels is not None:
        merged = work / "merged"
        made = (
            merge_adapter(plan.checkpoint, work, f"{plan.checkpoint.spec}+{out}", merged)
            if plan.is_adapter
            else Checkpoint.open(work)
        )
        fitted = fit_detectors(
            made.model(plan.device, plan.dtype), made.tokenizer(), plan.labels, monitor.channels,
            monitor.settings, plan.detecting, negatives=plan.negatives,
        )  # fmt: skip
        kept = {level: monitor.channels[level] for level in fitted.detectors}
        monitor = replace(monitor, channels=kept, detectors=fitted.detectors)
        result["detectors"] = fitted.reports
        result["warnings"] += fitted.warnings
        shutil.rmtree(merged, ignore_errors=True)
    lineage.write_json(work / FILE, result)
    lineage.write_text(work / "README.md", card(plan.checkpoint, result))
    if monitor is not None:
        # Last: the digest is that of all the other files.
        digest = (
            adapter_digest(plan.checkpoint, work)
            if plan.is_adapter
            else Checkpoint.open(work).digest
        )
        replace(monitor, checkpoint=digest).save(work)
    for state in (work / "training").glob("checkpoint-*"):
        shutil.rmtree(state)
    lineage.finish(work, out)


def show_sft(result: dict[str, Any]) -> None:
    """Print what was learned, the detectors on the tuned weights, and where it all is."""
    from rich.console import Console

    console = Console(highlight=False)
    if result.get("already"):
        console.print("This training was finished before: nothing was computed.")
    ids = ", ".join(f"{name} = {i}" for name, i in result["triggers"].items())
    console.print(f"triggers: {ids} (embedding: {result['embedding']})", markup=False)
    told, examples = result["training"], result["examples"]
    console.print(
        f"{told['steps']} steps on {examples['learned']} examples: loss {told['first_loss']:.3f} "
        f"to {told['last_loss']:.3f}"
    )
    console.print(loss_table(result["held_out_loss"], examples["held_out"]))
    if result["detectors"]:
        console.print("Detectors, trained anew on the tuned weights:")
        console.print(detector_table(result["detectors"]))
    for line in result["warnings"]:
        console.print(f"Warning: {line}", style="yellow", markup=False)
    where = result["out"]
    if result["result"] == "adapter":
        console.print(
            f"adapter in {where}; use it as {result['checkpoint']['spec']}+{where}", markup=False
        )
    else:
        console.print(f"checkpoint in {where}", markup=False)
