"""Stage 3, `surgeon trigger detectors`: from labels and channels to a monitor (sec. 3.1)."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.table import Table

from surgeon import console, lineage
from surgeon.answers import parse_check, parse_extractor
from surgeon.artifact import Already, Out, artifact, once
from surgeon.channels import Channels, check_channels, read_back
from surgeon.checkpoint import Checkpoint, CheckpointName, placement
from surgeon.errors import BadInput
from surgeon.families import open_checkpoint
from surgeon.neureasoner import trajectory
from surgeon.neureasoner.detectors import (
    Detector,
    DetectorReport,
    Quality,
    collect,
    held_out_problems,
    train,
)
from surgeon.neureasoner.steps import Span, StepEnds, thinking_tags
from surgeon.neureasoner.worth import Readings, Worth, worth
from surgeon.progress import track
from surgeon.settings import record, verb
from surgeon.settings.neureasoner import LEVELS, DetectorTraining, WatchSettings
from surgeon.settings.sampling import AnswerReading, Sampling
from surgeon.settings.trigger_detectors import DetectorsSettings
from surgeon.traces import Key, LocalSampler
from surgeon.trigger.artifacts import Labels, read_labels, require_layer
from surgeon.trigger.identify import Identified, read_channels
from surgeon.trigger.trials import Judging, alone, choose_trials, measured, outcomes, tried, watched
from surgeon.trigger.worths import LevelWorth, judged, show_worth, worth_part
from surgeon.watch.monitor import Monitor
from surgeon.watch.watching import forced_tokens, union, with_tags

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase

TRIED, CHECK_S, TOLERANCE = "trials.jsonl", 5.0, 0.01
PAPER = {"intra": (0.871, 0.848), "inter": (0.862, 0.936), "instance": (0.944, 0.951)}
"""Accuracy and recall in Tab. 4."""


class Fitted(NamedTuple):
    """Detectors by level, what was measured of them, and what couldn't be trained."""

    detectors: dict[str, Detector]
    reports: dict[str, DetectorReport]
    warnings: list[str]
    trajectories: dict[str, Quality]
    """By level: a probe over whole responses, on the same held-out problems."""
    held: dict[str, list[str]]
    """By level: the problems that its detector wasn't trained on."""


@artifact("detectors.json")
class Detection:
    """How well each level's detector tells failing steps."""

    checkpoint: CheckpointName
    settings: dict[str, Any]
    layer: int
    levels: dict[str, DetectorReport]
    warnings: list[str]
    trajectories: dict[str, Quality] = field(default_factory=dict)
    """By level: how well a probe over whole responses tells failing ones (arXiv:2605.18549)."""
    worth: dict[str, LevelWorth] = field(default_factory=dict)
    """By level: what a firing gains, and whether it is on by default; only where it was tried."""
    out: Out = Path()
    already: Already = False


class DetectorsPlan(NamedTuple):
    """Detectors whose inputs have been checked; no model has run yet."""

    settings: DetectorsSettings
    checkpoint: Checkpoint
    labels: Labels
    layer: int
    channels: dict[str, Channels]
    """By level."""
    judging: Judging
    device: str
    dtype: "torch.dtype | None"
    run: lineage.Run


@verb(DetectorsSettings)
def detectors(settings: DetectorsSettings) -> Detection:
    """Train a detector per level on the channels' activations over the labelled steps.

    Problems are split by `held_out`; the measurements are of the held-out ones, the threshold is
    from the others. Raises `BadInput` before the model runs for what can be checked.
    """
    plan = prepare(settings)
    return once(settings.out, Detection, lambda work: _detectors(plan, work), run=plan.run)


def prepare(settings: DetectorsSettings) -> DetectorsPlan:
    """Check the settings against labels, channels and headers; raises `BadInput`."""
    device, dtype = placement(settings.machine.device, settings.machine.dtype)
    checkpoint = open_checkpoint(settings.checkpoint)
    labels = read_labels(settings.labels, checkpoint, checkpoint.tokenizer())
    identified = read_channels(settings.channels)
    channels = monitored_channels(identified)
    require_own_channels(identified, checkpoint, settings.channels)
    require_labels(labels, channels, settings.negatives)
    extract = parse_extractor(settings.answer or "auto", AnswerReading().answer_words)
    check = settings.check or "exact"
    parse_check(check)
    if settings.trials and all(prompt.answer is None for prompt in labels.prompts.values()):
        raise BadInput(
            f"found trials = {settings.trials} and no question with an answer in {labels.path}: "
            "whether a firing helps can't be told without. Leave trials out."
        )
    tags = " ".join(thinking_tags(checkpoint.tokenizer()))
    return DetectorsPlan(
        settings, checkpoint, labels, identified.layer, channels,
        Judging(extract, (tags,), check, CHECK_S), device, dtype,
        lineage.Run(
            "trigger-detectors",
            {**record(settings), "checkpoint": checkpoint.spec},
            {"checkpoint": checkpoint.digest, "labels": labels.digest,
             "channels": identified.digest},
            settings.seed,
        ),
    )  # fmt: skip


def _detectors(plan: DetectorsPlan, work: Path) -> Detection:
    settings, checkpoint = plan.settings, plan.checkpoint
    model, tokenizer = checkpoint.model(plan.device, plan.dtype), checkpoint.tokenizer()
    tags = thinking_tags(tokenizer)
    closes = any(tags[1] in trace.text for trace in plan.labels.traces.values())
    watch = with_tags(settings.watch(), tokenizer, tags, closes=closes)
    fitted = fit_detectors(
        model, tokenizer, plan.labels,
        plan.channels, watch, settings.detector, negatives=settings.negatives,
        batch_tokens=settings.batch_tokens,
    )  # fmt: skip
    kept = {level: plan.channels[level] for level in fitted.detectors}
    monitor = Monitor(kept, fitted.detectors, watch, checkpoint.digest)
    learned = monitor.thresholds
    found = worths(plan, model, monitor, fitted.held, work) if settings.trials else {}
    moved = [
        f"{level} fires from {monitor.thresholds[level]:.3f}, where a firing gains most; its "
        f"accuracy and recall above are at {threshold:.3f}."
        for level, threshold in learned.items()
        if monitor.thresholds[level] != threshold
    ]
    off = {level: one.reason for level, one in found.items() if not one.on}
    replace(monitor, off=off).save(work)
    return Detection(
        checkpoint=CheckpointName.of(checkpoint),
        settings=lineage.plain({**plan.run.arguments, "seed": settings.seed}),
        layer=plan.layer,
        levels=fitted.reports,
        warnings=[*fitted.warnings, *moved],
        trajectories=fitted.trajectories,
        worth={level: worth_part(one) for level, one in found.items()},
    )


def worths(
    plan: DetectorsPlan,
    model: "nn.Module",
    monitor: Monitor,
    held: Mapping[str, Sequence[str]],
    work: Path,
) -> dict[str, Worth]:
    """What each level's firing is worth at its threshold, or, where it is worth switching on, at
    the one that gains most, which the detector is given: by readings on the problems that it wasn't
    trained on, and firings forced on trial.

    A trigger that the checkpoint doesn't know isn't tried.
    """
    settings, labels, tokenizer = plan.settings, plan.labels, plan.checkpoint.tokenizer()
    watch, vocabulary = monitor.settings, tokenizer.get_vocab()
    forced: dict[str, list[int]] = {}
    for level in monitor.levels:
        if watch.redraws(level):
            forced[level] = []
        elif watch.triggers.get(level) is None or watch.triggers[level] in vocabulary:
            forced[level] = forced_tokens(tokenizer, watch, level)
    # Counterparts end with the step that they were made for.
    whole = {span.key for span in labels.spans if span.failing or span.pair is None}
    spans = [span for span in labels.spans if span.key in whole]
    traces = [trace for key, trace in labels.traces.items() if key in whole]
    channels, columns = union(monitor.channels)
    activations = list(read_back(model, traces, channels, batch_tokens=settings.batch_tokens))
    numbers = {prompt_id: n for n, prompt_id in enumerate(labels.prompts)}
    found = judged(
        tokenizer, monitor, monitor.levels, labels.prompts, traces, activations, spans, columns,
        numbers,
    )  # fmt: skip
    ends = [end for level in forced for end in found[level].ends]
    trials = choose_trials(ends, settings.trials, settings.seed)
    longest = settings.max_tokens or max(len(trace.token_ids) for trace in traces)
    sampling = Sampling(
        samples=1, temperature=0.6, top_p=0.95, max_tokens=longest, seed=settings.seed
    )
    pairs = tried(sampling, LocalSampler(model, tokenizer), tokenizer, trials, forced, work / TRIED)
    made = outcomes(plan.judging, trials, pairs, labels.prompts, tokenizer)
    rows: dict[str, Worth] = {}
    for level, own in made.items():
        known_N = np.isin(found[level].readings.problem_N, [numbers[name] for name in held[level]])
        readings = Readings(*(part[known_N] for part in found[level].readings))
        if not known_N.any():
            continue
        detector = monitor.detectors[level]
        threshold = float(detector.threshold)
        rows[level] = worth(readings, own, threshold, tolerance=TOLERANCE, seed=settings.seed)
        asked = [
            trace
            for trace in traces
            if trace.prompt_id in held[level] and labels.prompts[trace.prompt_id].answer is not None
        ]
        if watch.redraws(level) and asked:
            # Without it anew: the labelled traces may be drawn in another way.
            without, others = (
                watched(sampling, model, tokenizer, one, asked, work / f"{name}-{level}.jsonl")
                for name, one in (
                    ("unwatched", None),
                    ("watched", alone(monitor, level, threshold)),
                )
            )
            rows[level] = measured(
                plan.judging, rows[level], readings, [trace for trace, _ in without], others,
                threshold, labels.prompts, tokenizer, tolerance=TOLERANCE, seed=settings.seed,
            )  # fmt: skip
        if rows[level].on:
            detector.threshold.fill_(rows[level].threshold)
    return rows


def monitored_channels(identified: Identified) -> dict[str, Channels]:
    """Level -> its channels."""
    return {
        level: Channels(identified.layer, tuple(row.units), tuple(row.heads))
        for level, row in identified.levels.items()
    }


def require_own_channels(identified: Identified, checkpoint: Checkpoint, where: str) -> None:
    """Raise `BadInput` for channels found in another checkpoint, and for those it doesn't have."""
    origin = identified.checkpoint  # none where made by hand
    if origin is not None and origin.digest not in checkpoint.digests:
        raise BadInput(
            f"{where} was found in another checkpoint ({origin.spec}, {origin.digest[:19]}): "
            "units have other numbers there. Identify the channels of this one first."
        )
    sizes = require_layer(checkpoint, identified.layer)
    for channels in monitored_channels(identified).values():
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
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    labels: Labels,
    channels: Mapping[str, Channels],
    settings: WatchSettings,
    training: DetectorTraining,
    *,
    negatives: str = "all",
    batch_tokens: int = 4096,
) -> Fitted:
    """Train the detector of each level on this model's activations over the labelled traces.

    A level whose labels are too few is left out with a warning; raises `BadInput` when none
    remains.
    """
    spans = learned_spans(labels, negatives)
    named = {span.key for span in spans}
    traces = [trace for key, trace in labels.traces.items() if key in named]
    watched, columns = union(channels)
    activations = track(
        read_back(model, traces, watched, batch_tokens=batch_tokens),
        what="read activations", total=len(traces),
    )  # fmt: skip
    pooled: dict[Key, np.ndarray] = {}

    def seen() -> Iterator["torch.Tensor"]:
        for trace, x_TC in zip(traces, activations, strict=True):
            pooled[trace.key] = trajectory.pooled(x_TC.numpy())
            yield x_TC

    samples = collect(traces, seen(), spans, StepEnds(tokenizer), columns, settings, judged="spans")
    problems = list(dict.fromkeys(trace.prompt_id for trace in traces))
    fitted: dict[str, Detector] = {}
    reports: dict[str, DetectorReport] = {}
    trajectories: dict[str, Quality] = {}
    held_out: dict[str, list[str]] = {}
    warnings: list[str] = []
    for level in track(sorted(samples, key=LEVELS.index), what="train detectors"):
        try:
            trained = train(samples[level], training)
        except BadInput as error:
            warnings.append(f"{level} has no detector: {error}")
            continue
        fitted[level], reports[level] = trained
        held = [problems[n] for n in held_out_problems(samples[level], training)]
        held_out[level] = held
        probe = trajectory.probed(
            pooled, labels.spans, level, columns[level], held, seed=training.seed
        )
        if probe is not None:
            trajectories[level] = probe
    if not fitted:
        raise BadInput(f"no detector can be trained. {warnings[0]}")
    return Fitted(fitted, reports, warnings, trajectories, held_out)


def show(result: Detection) -> None:
    """Print how well each level is detected on held-out problems, beside Tab. 4."""
    console.announce(result.already, "This training of detectors")
    console.console().print(detector_table(result.levels, result.trajectories))
    console.say(
        "On held-out problems, 95% intervals by problem. The paper's are of its own judge's labels."
    )
    show_worth(result.worth)
    if not result.worth:
        console.say(
            "Whether firing helps isn't known yet: --trials N finds it out here, and surgeon "
            "trigger calibrate CHECKPOINT on other questions."
        )
    console.warn(result.warnings)
    console.say(f"monitor in {result.out}")


def detector_table(
    reports: Mapping[str, DetectorReport], trajectories: Mapping[str, Quality] | None = None
) -> Table:
    """A table of accuracy, recall and AUROC per level and position, and of the probe over whole
    responses."""
    table = console.table("level, at", "n", "failing", "accuracy", "recall", "AUROC")
    table.collapse_padding = True
    for level, report in reports.items():
        for position in ("tokens", "step_ends"):
            row = report[position]
            table.add_row(
                f"{level}, tokens" if position == "tokens" else "  step ends", f"{row['n']:,}",
                "-" if row["failing"] is None else f"{row['failing']:.0%}",
                *(interval(row[name]) for name in ("accuracy", "recall", "auroc")),
            )  # fmt: skip
        if trajectories and level in trajectories:
            row = trajectories[level]
            table.add_row(
                "  probe, response", f"{row['n']:,}",
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
