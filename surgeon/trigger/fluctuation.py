"""`surgeon trigger fluctuation`: how the channels fluctuate where a checkpoint fails (sec. 2.2)."""

# Shapes: N spans of both sides, T tokens, C channels, X features of a channel.

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from surgeon import console, lineage
from surgeon.artifact import Already, Out, artifact, once
from surgeon.channels import Channels, read_back
from surgeon.checkpoint import Checkpoint, CheckpointName, placement
from surgeon.errors import BadInput
from surgeon.families import open_checkpoint
from surgeon.neureasoner import pairs
from surgeon.neureasoner.features import FEATURES, trace_features
from surgeon.neureasoner.steps import Span, Step, StepEnds, split_steps
from surgeon.progress import track
from surgeon.report.fluctuating import FeatureContrast, LevelFluctuation, page
from surgeon.settings import record, verb
from surgeon.settings.neureasoner import LEVELS, WatchSettings
from surgeon.settings.trigger_fluctuation import FluctuationSettings
from surgeon.trigger.artifacts import Labels, read_labels
from surgeon.trigger.detectors import interval, monitored_channels, require_own_channels
from surgeon.trigger.identify import read_channels
from surgeon.watch.watching import union

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PAGE = "fluctuation.html"
VERDICTS = {"as the paper": "yes", "the other way": "reverse", "not told apart": "unclear"}


@artifact("fluctuation.json")
class Fluctuation:
    """How the channels of each level fluctuate, failing against counterpart."""

    checkpoint: CheckpointName
    settings: dict[str, Any]
    layer: int
    levels: dict[str, LevelFluctuation]
    warnings: list[str]
    out: Out = Path()
    already: Already = False


class FluctuationPlan(NamedTuple):
    """A fluctuation analysis whose inputs have been checked; no model has run yet."""

    settings: FluctuationSettings
    checkpoint: Checkpoint
    labels: Labels
    layer: int
    channels: dict[str, Channels]
    """By level."""
    compared: dict[str, list[Span]]
    """By level: failing spans and those they are compared with."""
    warnings: list[str]
    device: str
    dtype: "torch.dtype | None"
    run: lineage.Run


@verb(FluctuationSettings)
def fluctuation(settings: FluctuationSettings) -> Fluctuation:
    """Compare the channels' activations over failing spans with those over their counterparts.

    Where no failing span of a level has a counterpart, all failing spans are compared with the
    stretches without failure, and this is said. Raises `BadInput` before the model runs for what
    can be checked.
    """
    plan = prepare(settings)
    return once(settings.out, Fluctuation, lambda work: _fluctuation(plan, work), run=plan.run)


def prepare(settings: FluctuationSettings) -> FluctuationPlan:
    """Check the settings against labels, channels and headers; raises `BadInput`."""
    device, dtype = placement(settings.machine.device, settings.machine.dtype)
    checkpoint = open_checkpoint(settings.checkpoint)
    labels = read_labels(settings.labels, checkpoint, checkpoint.tokenizer())
    identified = read_channels(settings.channels)
    require_own_channels(identified, checkpoint, settings.channels)
    channels = monitored_channels(identified)
    compared: dict[str, list[Span]] = {}
    warnings: list[str] = []
    for level in (level for level in LEVELS if level in channels):
        spans, paired = comparison(labels.spans, level)
        if {span.failing for span in spans} != {True, False}:
            warnings.append(f"{level}: found no failing span and another one to compare it with.")
            continue
        if not paired:
            warnings.append(
                f"{level}: no failing span has a counterpart, so stretches without failure stand "
                "against them; label with pairs and resample above 0 for counterparts."
            )
        compared[level] = spans
    if not compared:
        raise BadInput(f"{settings.labels} has nothing to compare. {' '.join(warnings)}")
    return FluctuationPlan(
        settings, checkpoint, labels, identified.layer, channels, compared, warnings, device, dtype,
        lineage.Run(
            "trigger-fluctuation",
            {**record(settings), "checkpoint": checkpoint.spec},
            {"checkpoint": checkpoint.digest, "labels": labels.digest,
             "channels": identified.digest},
            settings.seed,
        ),
    )  # fmt: skip


def comparison(spans: Sequence[Span], level: str) -> tuple[list[Span], bool]:
    """The pairs of a level, failing spans and counterparts; all of its spans where there are none.

    The second is whether they are pairs.
    """
    own = [span for span in spans if span.level == level]
    sides = [{span.pair for span in own if span.failing == side} - {None} for side in (True, False)]
    both = sides[0] & sides[1]
    chosen = [span for span in own if span.pair in both]
    return (chosen, True) if chosen else (own, False)


def _fluctuation(plan: FluctuationPlan, work: Path) -> Fluctuation:
    checkpoint, settings = plan.checkpoint, plan.settings
    named = {span.key for spans in plan.compared.values() for span in spans}
    traces = [trace for key, trace in plan.labels.traces.items() if key in named]
    watched, columns = union({level: plan.channels[level] for level in plan.compared})
    model = checkpoint.model(plan.device, plan.dtype)
    activations = track(
        read_back(model, traces, watched, batch_tokens=settings.batch_tokens),
        what="read activations", total=len(traces),
    )  # fmt: skip
    ends = StepEnds(checkpoint.tokenizer())
    by_key = {span.key: [] for spans in plan.compared.values() for span in spans}
    for spans in plan.compared.values():
        for span in spans:
            by_key[span.key].append(span)
    seen: dict[str, list[_Seen]] = {level: [] for level in plan.compared}
    for trace, x_TC in zip(traces, activations, strict=True):
        steps = split_steps(ends, trace.token_ids)
        for span in by_key[trace.key]:
            one = _seen(span, x_TC, steps, columns[span.level], settings.watch())
            if one is not None:
                seen[span.level].append(one)
    result = Fluctuation(
        checkpoint=CheckpointName.of(checkpoint),
        settings=lineage.plain({**plan.run.arguments, "seed": settings.seed}),
        layer=plan.layer,
        levels={level: _level(level, some, plan) for level, some in seen.items()},
        warnings=plan.warnings,
    )
    lineage.write_text(work / PAGE, page(checkpoint.spec, plan.layer, result.levels))
    return result


class _Seen(NamedTuple):
    """A span as its channels saw it."""

    span: Span
    x_TC: np.ndarray
    feature_CX: np.ndarray
    """The level's features where its detector is read: at the end of the span."""


def _seen(
    span: Span,
    x_TC: "Tensor",
    steps: Sequence[Step],
    columns: Sequence[int],
    watch: WatchSettings,
) -> _Seen | None:
    """None where the detector isn't read at the span's end: a trace with too few first steps."""
    last = watch.instance_steps - 1 if span.level == "instance" else span.last
    if last >= len(steps):
        return None
    end = steps[last].end
    position_N, feature_NCX = trace_features(x_TC, steps, span.level, watch, columns)
    (at,) = (position_N == end - 1).nonzero()[:, 0].tolist()
    part_TC = x_TC[steps[span.first].start : end, list(columns)]
    return _Seen(span, part_TC.double().numpy(), feature_NCX[at].double().numpy())


def _level(level: str, seen: Sequence[_Seen], plan: FluctuationPlan) -> LevelFluctuation:
    settings = plan.settings
    names = sorted({one.span.prompt_id for one in seen})
    problem_N = [names.index(one.span.prompt_id) for one in seen]
    failing_N = np.array([one.span.failing for one in seen])
    usual_C = pairs.usual_level([one.x_TC for one in seen])
    probes = settings.watch().probes
    time_NT = np.array([pairs.time_profile(o.x_TC, usual_C, settings.tokens) for o in seen])
    power_NK = np.array([pairs.frequency_profile(one.x_TC, probes) for one in seen])
    feature_NX = np.array([one.feature_CX.mean(0) for one in seen])

    def sides(value_NX: np.ndarray) -> list[list[pairs.Interval]]:
        return [
            pairs.mean_with_interval(
                value_NX[side_N], np.array(problem_N)[side_N].tolist(), settings.seed
            )
            for side_N in (failing_N, ~failing_N)
        ]

    time, power, mean = sides(time_NT), sides(power_NK), sides(feature_NX)
    features = {
        name: FeatureContrast(
            failing=mean[0][x],
            counterpart=mean[1][x],
            effect=pairs.effect_size(feature_NX[:, x], failing_N, problem_N, settings.seed),
            auroc=pairs.auroc(feature_NX[:, x], failing_N, problem_N, settings.seed),
            expected=pairs.EXPECTED[level][name],
        )
        for x, name in enumerate(FEATURES[level])
    }
    return LevelFluctuation(
        spans=int(failing_N.sum()),
        counterparts=int((~failing_N).sum()),
        problems=len(names),
        channels=len(usual_C),
        features=features,
        time_failing=time[0],
        time_counterpart=time[1],
        frequencies=[float(probe) for probe in probes],
        power_failing=power[0],
        power_counterpart=power[1],
    )


def show(result: Fluctuation) -> None:
    """Print each feature's effect size and AUROC, beside the way the paper says it moves."""
    console.announce(result.already, "This analysis")
    table = console.table("level, feature", "failing", "other", "effect size", "AUROC", "paper?")
    table.collapse_padding = True
    for level, row in result.levels.items():
        for name, feature in row.features.items():
            table.add_row(
                f"{level}, {name}", _number(feature.failing[0]), _number(feature.counterpart[0]),
                _interval(feature.effect), interval(feature.auroc), VERDICTS[feature.verdict],
            )  # fmt: skip
    console.console().print(table)
    console.say(
        f"{_counts(result.levels)}. Features at the span's end, mean over the channels; 95% by "
        "problem. paper?: whether failing spans have more, or less, of it as sec. 3.1 says."
    )
    console.warn(result.warnings)
    console.say(f"profiles in time and frequency in {result.out}/{PAGE}")


def _counts(levels: Mapping[str, LevelFluctuation]) -> str:
    return "; ".join(
        f"{level}: {row.spans} failing, {row.counterparts} others, {row.problems} problems"
        for level, row in levels.items()
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(value: pairs.Interval) -> str:
    middle, low, high = value
    if middle is None:
        return "-"
    return f"{middle:.2f}" if low is None else f"{middle:.2f} ({low:.2f}, {high:.2f})"
