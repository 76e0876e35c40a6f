"""`surgeon trigger calibrate`: thresholds for the checkpoint that is watched, and what they gain.

Detectors are trained before the trigger training, or refitted on labels from before it: on the
tuned model their probabilities mean something else. Its own traces are judged here.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon import console, lineage, named
from surgeon.answers import gold_problem, parse_check, parse_extractor, parse_tags
from surgeon.artifact import Already, Out, artifact, once, part
from surgeon.channels import read_back
from surgeon.checkpoint import Checkpoint, CheckpointName, placement, rewrite
from surgeon.errors import BadInput
from surgeon.families import open_checkpoint
from surgeon.live import support
from surgeon.neureasoner import worth
from surgeon.neureasoner.detectors import Quality, quality
from surgeon.neureasoner.worth import NEVER, Readings, Worth
from surgeon.progress import track
from surgeon.settings import record, verb
from surgeon.settings.neureasoner import LEVELS, Level
from surgeon.settings.trigger_calibrate import CalibrateSettings
from surgeon.settings.trigger_label import LabelSettings
from surgeon.traces import LocalSampler, Prompt, Trace, digest_of_prompts, read_prompts, read_traces
from surgeon.trigger import label as labelling
from surgeon.trigger.artifacts import SPANS, TRACES, Spending
from surgeon.trigger.detectors import interval, short
from surgeon.trigger.trials import (
    Judging,
    alone,
    choose_trials,
    measured,
    outcomes,
    right,
    tried,
    watched,
)
from surgeon.trigger.worths import (
    LevelReadings,
    LevelWorth,
    judged,
    show_worth,
    threshold_of,
    worth_part,
)
from surgeon.watch.monitor import Monitor, find_monitor
from surgeon.watch.spans import read_spans
from surgeon.watch.watching import forced_tokens, union

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase

FILE, INSIDE, TRIED = "calibration.json", "calibration", "trials.jsonl"


@part
class LevelCalibration:
    """A level's threshold, and what was found of it."""

    before: float
    """Threshold before."""
    false_alarms: float | None
    """Threshold at the chosen share of false alarms; None where even the surest reading is one too
    many."""
    threshold: float | None
    """The one that is written; None where nothing fires."""
    quality: Quality
    """Of the detector at the step ends of the checkpoint's own traces, at that threshold."""
    worth: LevelWorth | None
    """None where nothing was tried."""
    on: bool
    """Whether it is on by default."""


@artifact(FILE)
class Calibration:
    """What `surgeon trigger calibrate` found and wrote."""

    checkpoint: CheckpointName
    settings: dict[str, Any]
    traces: int
    problems: int
    accuracy: float | None
    """Of the judged traces themselves; None without known answers."""
    levels: dict[str, LevelCalibration]
    judge: Spending
    warnings: list[str]
    out: Out = Path()
    already: Already = False


class CalibratePlan(NamedTuple):
    """A calibration whose inputs have been checked; nothing has been sampled yet."""

    settings: CalibrateSettings
    checkpoint: Checkpoint
    tokenizer: "PreTrainedTokenizerBase"
    monitor: Monitor
    levels: tuple[str, ...]
    prompts: dict[str, Prompt]
    """By id, in their order."""
    forced: dict[str, list[int]]
    """By level that can be tried: what a firing forces; nothing where it draws the step anew."""
    judging: Judging
    label: LabelSettings
    device: str
    dtype: "torch.dtype | None"
    run: lineage.Run


@verb(CalibrateSettings)
def calibrate(settings: CalibrateSettings) -> Calibration:
    """Set the thresholds of a checkpoint's monitor on its own judged traces, find out on trial what
    its firing is worth, and write a copy that carries both.

    A killed run resumes when it is called again. Raises `BadInput` before anything is sampled for
    what can be checked.
    """
    plan = prepare(settings)
    return once(settings.out, Calibration, lambda work: _calibrate(plan, work), run=plan.run)


def prepare(settings: CalibrateSettings) -> CalibratePlan:
    """Check the settings against files and headers; raises `BadInput`."""
    device, dtype = placement(settings.machine.device, settings.machine.dtype)
    extract = parse_extractor(settings.answer, settings.reading.answer_words)
    parse_tags(settings.reading.think_tags)
    parse_check(settings.check)
    prompts = read_prompts(
        settings.prompts,
        lambda p: None if p.answer is None else gold_problem(p.answer, settings.check),
        settings.columns,
    )[: settings.limit]
    checkpoint = open_checkpoint(settings.checkpoint)
    support.require("decode", checkpoint)
    tokenizer = checkpoint.tokenizer()
    file = find_monitor(settings.checkpoint, checkpoint, settings.monitor_file)
    if file is None:
        raise BadInput(
            f"{settings.checkpoint} carries no monitor. Train one with `surgeon trigger "
            "detectors`, or name one with --monitor-file."
        )
    monitor = Monitor.load(file, checkpoint).acting(settings.action, None)
    wanted = {*settings.levels} & {*monitor.levels}
    levels: tuple[Any, ...] = tuple(level for level in LEVELS if level in wanted)
    if not levels:
        raise BadInput(
            f"found levels = {', '.join(settings.levels)}, expected some of the monitor's that a "
            f"judge can label: {', '.join(v for v in LEVELS if v in monitor.levels) or 'none'}."
        )
    forced: dict[str, list[int]] = {}
    if settings.trials and any(prompt.answer is not None for prompt in prompts):
        forced = {
            level: []
            if monitor.settings.redraws(level)
            else forced_tokens(tokenizer, monitor.settings, level)
            for level in levels
        }
    tags = (*settings.reading.think_tags, " ".join(monitor.settings.thinking))
    judging = Judging(extract, tags, settings.check, settings.timeout_s)
    label = label_settings(settings, levels)
    labelling.prepare(label)
    inputs = {
        "checkpoint": checkpoint.digest,
        "monitor": lineage.file_digest(file),
        "prompts": digest_of_prompts(prompts),
        **named.digests(judge=settings.judge, answer=settings.answer, check=settings.check),
    }
    run = lineage.Run(
        "trigger-calibrate",
        {**record(settings), "checkpoint": checkpoint.spec, "levels": list(levels)},
        inputs, settings.seed,
    )  # fmt: skip
    return CalibratePlan(
        settings, checkpoint, tokenizer, monitor, levels, {p.id: p for p in prompts}, forced,
        judging, label, device, dtype, run,
    )  # fmt: skip


def label_settings(settings: CalibrateSettings, levels: Sequence[Level]) -> LabelSettings:
    """How the checkpoint's own traces are sampled and judged: no counterparts."""
    return LabelSettings(
        checkpoint=settings.checkpoint, prompts=settings.prompts,
        out=settings.out,
        columns=settings.columns, judge=settings.judge,
        judge_temperature=settings.judge_temperature, levels=tuple(levels), limit=settings.limit,
        inter_steps=settings.inter_steps, most_unusable=settings.most_unusable, pairs=0, resample=0,
        seed=settings.seed, sampling=settings.sampling, endpoint=settings.endpoint,
        machine=settings.machine,
    )  # fmt: skip


def _calibrate(plan: CalibratePlan, work: Path) -> Calibration:
    settings, inside = plan.settings, work / INSIDE
    inside.mkdir(exist_ok=True)
    labelled = labelling.label(replace(plan.label, out=inside / "labels"))
    traces = read_traces(inside / "labels" / TRACES)
    spans = read_spans(inside / "labels" / SPANS)
    model = plan.checkpoint.model(plan.device, plan.dtype)
    channels, columns = union({level: plan.monitor.channels[level] for level in plan.levels})
    activations = track(
        read_back(model, traces, channels), what="read activations", total=len(traces)
    )
    numbers = {prompt_id: n for n, prompt_id in enumerate(plan.prompts)}
    found = judged(
        plan.tokenizer, plan.monitor, plan.levels, plan.prompts, traces, list(activations), spans,
        columns, numbers,
    )  # fmt: skip
    trials = choose_trials(
        [end for level in plan.forced for end in found[level].ends], settings.trials, settings.seed
    )
    pairs = tried(
        settings.sampling, LocalSampler(model, plan.tokenizer), plan.tokenizer, trials, plan.forced,
        inside / TRIED,
    )  # fmt: skip
    made = outcomes(plan.judging, trials, pairs, plan.prompts, plan.tokenizer)
    known = [trace for trace in traces if plan.prompts[trace.prompt_id].answer is not None]
    rows = {
        level: _row(plan, level, found[level].readings, made.get(level), model, known, inside)
        for level in plan.levels
    }
    correct = right(plan.judging, known, plan.prompts, plan.tokenizer)
    result = Calibration(
        checkpoint=CheckpointName.of(plan.checkpoint),
        settings=lineage.plain({**plan.run.arguments, "seed": settings.seed}),
        traces=len(traces),
        problems=len({trace.prompt_id for trace in traces}),
        accuracy=float(correct.mean()) if len(correct) else None,
        levels=rows,
        judge=labelled.judge,
        warnings=_warnings(plan, labelled.warnings, found, rows),
    )
    _write(plan, rows, work)
    return result


def _row(
    plan: CalibratePlan,
    level: str,
    readings: Readings,
    trials: worth.Trials | None,
    model: "nn.Module",
    known: Sequence[Trace],
    inside: Path,
) -> LevelCalibration:
    """A level's threshold: the one that gains most where it is on, else that of false alarms.

    A level that draws steps anew has the second, and is measured there on the questions of the
    `known` traces, those that have an answer.
    """
    settings, before = plan.settings, plan.monitor.thresholds[level]
    redraws = level in plan.forced and plan.monitor.settings.redraws(level)
    alarms = NEVER
    if len(readings.failing_N) and not readings.failing_N.all():
        alarms = worth.false_alarm_threshold(
            readings.probability_N, readings.failing_N, settings.false_alarms
        )
    found: Worth | None = None
    if trials is None and redraws and len(readings.failing_N):
        trials = worth.NO_TRIALS
    if trials is not None:
        found = worth.worth(
            readings, trials, alarms, tolerance=settings.tolerance, seed=settings.seed,
            at_alarms=redraws or settings.threshold == "false-alarms",
        )  # fmt: skip
    if found is not None and redraws and alarms == NEVER:
        found = found._replace(threshold=NEVER, on=False, reason="nothing would fire")
    elif found is not None and redraws:
        whole = watched(
            settings.sampling, model, plan.tokenizer, alone(plan.monitor, level, alarms), known,
            inside / f"watched-{level}.jsonl",
        )  # fmt: skip
        found = measured(
            plan.judging, found, readings, known, whole, alarms, plan.prompts, plan.tokenizer,
            tolerance=settings.tolerance, seed=settings.seed,
        )  # fmt: skip
    threshold = alarms if found is None else found.threshold
    return LevelCalibration(
        before=before,
        false_alarms=threshold_of(alarms),
        threshold=threshold_of(threshold),
        quality=quality(
            readings.probability_N, readings.failing_N, readings.problem_N, threshold=threshold,
            seed=settings.seed,
        ),
        worth=None if found is None else worth_part(found),
        on=(found is None or found.on) and threshold != NEVER,
    )  # fmt: skip


def _warnings(
    plan: CalibratePlan,
    labels: Sequence[str],
    judged: Mapping[str, LevelReadings],
    rows: Mapping[str, LevelCalibration],
) -> list[str]:
    warnings = list(labels)
    if not plan.forced:
        why = "trials = 0" if not plan.settings.trials else "no question has an answer"
        warnings.append(f"nothing was tried ({why}): what a firing is worth isn't known.")
    for level in plan.levels:
        failing_N = judged[level].readings.failing_N
        if len(failing_N) and not failing_N.any():
            warnings.append(f"{level}: no step end fails, so its recall isn't known.")
        if level in plan.forced and rows[level].worth is None:
            warnings.append(f"{level}: no firing could be tried.")
    return warnings


def _write(plan: CalibratePlan, rows: Mapping[str, LevelCalibration], work: Path) -> None:
    """Copy the checkpoint, and put the monitor with its new thresholds beside it."""
    rewrite(plan.checkpoint, work, lambda _, tensor: tensor, lambda _: False)
    detectors, off = dict(plan.monitor.detectors), dict(plan.monitor.off)
    for level, row in rows.items():
        detectors[level] = deepcopy(detectors[level])
        detectors[level].threshold.fill_(NEVER if row.threshold is None else row.threshold)
        off.pop(level, None)
        if not row.on:
            off[level] = row.worth.reason if row.worth else "nothing would fire"
    replace(
        plan.monitor, detectors=detectors, off=off, checkpoint=Checkpoint.open(work).digest
    ).save(work)


def show(result: Calibration) -> None:
    """Print thresholds, what a firing is worth, and which levels are on."""
    console.announce(result.already, "This calibration")
    table = console.table(
        "level", "threshold", "before", "recall", "precision", "AUROC", "by default"
    )
    for level, row in result.levels.items():
        table.add_row(
            level, "never" if row.threshold is None else f"{row.threshold:.3g}",
            f"{row.before:.3g}", interval(row.quality["recall"]),
            interval(row.quality["precision"]),
            "-" if row.quality["auroc"][0] is None else short(row.quality["auroc"][0]),
            "on" if row.on else "off",
        )  # fmt: skip
    console.console().print(table)
    show_worth({level: row.worth for level, row in result.levels.items() if row.worth})
    if result.accuracy is not None:
        console.say(f"Its own answers without a firing: {result.accuracy:.1%} right.")
    result.judge.show("judge")
    console.warn(result.warnings)
    console.say(f"checkpoint with its monitor in {result.out}")
