"""Stage 3, `surgeon trigger detectors`: from labels and channels to a monitor (sec. 3.1)."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from surgeon import lineage
from surgeon.channels import Channels, check_channels, read_back
from surgeon.checkpoint import Checkpoint, placement
from surgeon.errors import BadInput
from surgeon.families import open_checkpoint
from surgeon.neureasoner.detectors import Detector, collect, train
from surgeon.neureasoner.steps import LEVELS, Span, StepEnds
from surgeon.progress import track
from surgeon.settings.neureasoner import DetectorTraining as Training
from surgeon.settings.neureasoner import WatchSettings as Settings
from surgeon.settings.neureasoner import even_probes
from surgeon.trigger.artifacts import Labels, read_labels, require_layer
from surgeon.trigger.identifying import read_channels
from surgeon.watch.monitor import Monitor
from surgeon.watch.watching import union

FILE = "detectors.json"
NEGATIVES = ("all", "pairs")
"""What a detector learns to leave alone: every step without a failure, or the counterparts only."""
PAPER = {"intra": (0.871, 0.848), "inter": (0.862, 0.936), "instance": (0.944, 0.951)}
"""Accuracy and recall in Tab. 4."""


class Fitted(NamedTuple):
    """Detectors by level, what was measured of them, and what couldn't be trained."""

    detectors: dict[str, Detector]
    reports: dict[str, dict[str, Any]]
    warnings: list[str]


def detectors(
    checkpoint: str,
    *,
    labels: str | Path,
    channels: str | Path,
    out: str | Path,
    k: int = Settings.k,
    k_intra: int | None = None,
    k_inter: int | None = None,
    instance_steps: int = Settings.instance_steps,
    probes: int = 16,
    negatives: str = "all",
    positions: str = Training.positions,
    criterion: str = Training.criterion,
    hidden: int = Training.hidden,
    dropout: float = Training.dropout,
    updates: int = Training.updates,
    detector_batch: int = Training.batch,
    lr: float = Training.lr,
    weight_decay: float = Training.weight_decay,
    held_out: float = Training.held_out,
    cooldown: int = Settings.cooldown,
    cap: int = Settings.cap,
    batch_tokens: int = 4096,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
) -> dict[str, Any]:
    """Train a detector per level on the channels' activations over the labelled steps.

    `labels` and `channels` are the directories of the stages before. `negatives` is `all` (every
    step that was looked at and found sound) or `pairs` (the counterparts of failing spans only).
    Problems are split by `held_out`; the measurements are of the held-out ones, the threshold is
    from the others. Writes `monitor.safetensors` and `detectors.json` to the directory `out` and
    returns the latter. Raises `BadInput` before the model runs for what can be checked.
    """
    training = Training(
        hidden=hidden, dropout=dropout, updates=updates, batch=detector_batch, lr=lr,
        weight_decay=weight_decay, held_out=held_out, positions=positions,  # pyright: ignore
        criterion=criterion, seed=seed,  # pyright: ignore
    )  # fmt: skip
    settings = Settings(
        k=k, k_intra=k_intra, k_inter=k_inter, instance_steps=instance_steps,
        probes=even_probes(probes), cooldown=cooldown, cap=cap,
    )  # fmt: skip
    if negatives not in NEGATIVES:
        raise BadInput(f"negatives is {negatives!r}, expected one of: {', '.join(NEGATIVES)}.")
    if batch_tokens < 1:
        raise BadInput(f"batch_tokens is {batch_tokens}; it must be at least 1.")
    where, kind = placement(device, dtype)
    opened = open_checkpoint(checkpoint)
    tokenizer = opened.tokenizer()
    read = read_labels(labels, opened, tokenizer)
    found = read_channels(channels)
    monitored = monitored_channels(found)
    require_own_channels(found, opened, str(channels))
    require_labels(read, monitored, negatives)
    arguments = {
        "checkpoint": opened.spec, "labels": str(labels), "channels": str(channels), "k": k,
        "k_intra": k_intra, "k_inter": k_inter, "instance_steps": instance_steps,
        "probes": probes, "negatives": negatives,
        "positions": positions, "criterion": criterion, "hidden": hidden, "dropout": dropout,
        "updates": updates, "detector_batch": detector_batch, "lr": lr,
        "weight_decay": weight_decay, "held_out": held_out, "cooldown": cooldown, "cap": cap,
        "device": device, "dtype": dtype,
    }  # fmt: skip
    work = lineage.begin(
        out, verb="trigger-detectors", arguments=arguments, seed=seed,
        inputs={"checkpoint": opened.digest, "labels": read.digest,
                "channels": lineage.digest_of([found["layer"], found["levels"]])},
    )  # fmt: skip
    if work is None:
        return {**lineage.read_object(Path(out) / FILE), "out": str(out), "already": True}
    model = opened.model(where, kind)
    fitted = fit_detectors(
        model, tokenizer, read, monitored, settings, training, negatives=negatives,
        batch_tokens=batch_tokens,
    )  # fmt: skip
    kept = {level: monitored[level] for level in fitted.detectors}
    Monitor(kept, fitted.detectors, settings, opened.digest).save(work)
    result = {
        "checkpoint": {"spec": opened.spec, "digest": opened.digest},
        "settings": {**arguments, "seed": seed},
        "layer": found["layer"],
        "levels": fitted.reports,
        "warnings": fitted.warnings,
    }
    lineage.write_json(work / FILE, result)
    lineage.finish(work, out)
    return {**result, "out": str(out)}


def monitored_channels(found: Mapping[str, Any]) -> dict[str, Channels]:
    """Level -> its channels, of what `read_channels` read."""
    return {
        level: Channels(found["layer"], tuple(row["units"]), tuple(row["heads"]))
        for level, row in found["levels"].items()
    }


def require_own_channels(found: Mapping[str, Any], checkpoint: Checkpoint, where: str) -> None:
    """Raise `BadInput` for channels found in another checkpoint, and for those it doesn't have."""
    made = found.get("checkpoint") or {}  # none where made by hand
    digest = made.get("digest")
    if digest is not None and digest not in checkpoint.digests:
        raise BadInput(
            f"{where} was found in another checkpoint ({made.get('spec')}, {str(digest)[:19]}): "
            "units have other numbers there. Identify the channels of this one first."
        )
    sizes = require_layer(checkpoint, found["layer"])
    for channels in monitored_channels(found).values():
        check_channels(channels, *sizes)


def learned_spans(labels: Labels, negatives: str) -> list[Span]:
    """Failing spans, and those that detectors learn to leave alone."""
    return [s for s in labels.spans if s.failing or negatives == "all" or s.pair is not None]


def require_labels(labels: Labels, levels: Collection[str], negatives: str) -> None:
    """Raise `BadInput` where no level's labels are enough for training and test."""
    found = []
    for level in levels:
        spans = [s for s in learned_spans(labels, negatives) if s.level == level]
        failing = len({s.prompt_id for s in spans if s.failing})
        others = len({s.prompt_id for s in spans if not s.failing})
        if min(failing, others) >= 2:
            return
        found.append(f"{level} fails in {failing} problems and not in {others}")
    raise BadInput(
        f"{labels.path} has too few labels for a detector: {', '.join(found)}; expected at least 2 "
        "of each. Label more traces."
    )


def fit_detectors(
    model: Any,
    tokenizer: Any,
    labels: Labels,
    channels: Mapping[str, Channels],
    settings: Settings,
    training: Training,
    *,
    negatives: str = "all",
    batch_tokens: int = 4096,
) -> Fitted:
    """Train the detector of each level on this model's activations over the labelled traces.

    A level whose labels are too few is left out with a warning; raises `BadInput` when none
    remains.
    """
    spans = learned_spans(labels, negatives)
    named = {(span.prompt_id, span.sample) for span in spans}
    traces = [trace for key, trace in labels.traces.items() if key in named]
    watched, columns = union(channels)
    activations = track(
        read_back(model, traces, watched, batch_tokens=batch_tokens),
        what="read activations", total=len(traces),
    )  # fmt: skip
    samples = collect(
        traces, activations, spans, StepEnds(tokenizer), columns, settings, judged="spans"
    )
    fitted = Fitted({}, {}, [])
    for level in track(sorted(samples, key=LEVELS.index), what="train detectors"):
        try:
            trained = train(samples[level], training)
        except BadInput as error:
            fitted.warnings.append(f"{level} has no detector: {error}")
            continue
        fitted.detectors[level], fitted.reports[level] = trained
    if not fitted.detectors:
        raise BadInput(f"no detector can be trained. {fitted.warnings[0]}")
    return fitted


def show_detectors(result: dict[str, Any]) -> None:
    """Print how well each level is detected on held-out problems, beside Tab. 4."""
    from rich.console import Console

    console = Console(highlight=False)
    if result.get("already"):
        console.print("These detectors were trained before: nothing was computed.")
    console.print(detector_table(result["levels"]))
    console.print(
        "On held-out problems, 95% intervals by problem. The paper's are of its own judge's labels."
    )
    for line in result["warnings"]:
        console.print(f"Warning: {line}", style="yellow", markup=False)
    console.print(f"monitor in {result['out']}", markup=False)


def detector_table(reports: Mapping[str, Any]) -> Any:
    """A table of accuracy, recall and AUROC per level and position."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    table.add_column("level, at")
    for name in ("n", "failing", "accuracy", "recall", "AUROC"):
        table.add_column(name, justify="right")
    for level, report in reports.items():
        for position in ("tokens", "step_ends"):
            row = report[position]
            table.add_row(
                f"{level}, tokens" if position == "tokens" else "  step ends", f"{row['n']:,}",
                "-" if row["failing"] is None else f"{row['failing']:.0%}",
                *(interval(row[name]) for name in ("accuracy", "recall", "auroc")),
            )  # fmt: skip
        accuracy, recall = (f"{short(value)} {'':9}" for value in PAPER[level])
        table.add_row("  Tab. 4", "", "", accuracy, recall, "", style="dim")
    return table


def interval(value: list[float | None]) -> str:
    """`.87 (.83-.91)`; a dash where the measure isn't defined."""
    middle, low, high = value
    if middle is None:
        return "-"
    if low is None or high is None:
        return f"{short(middle):<4} {'':9}"
    return f"{short(middle)} ({short(low)}-{short(high)})"


def short(share: float) -> str:
    """A share to two digits, without a zero before the point."""
    return f"{share:.2f}".removeprefix("0")
