"""Detectors from the two sets: was it enough after this step, and is the question an easy one?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from surgeon import attribution
from surgeon.attribution import Where
from surgeon.channels import Channels, read_back
from surgeon.early_stop.courses import Course
from surgeon.early_stop.plan import EarlyStopPlan
from surgeon.early_stop.probing import step_ends
from surgeon.early_stop.stop_rules import DIGITS
from surgeon.errors import BadInput
from surgeon.live.blocks import block
from surgeon.neureasoner.detectors import Detector, DetectorReport, collect, train
from surgeon.neureasoner.features import trace_features
from surgeon.neureasoner.steps import Span, whole_steps
from surgeon.progress import track
from surgeon.watch.watching import union

if TYPE_CHECKING:
    from torch import nn

    from surgeon.traces import Trace

STOPPING: tuple[Literal["enough", "instance"], ...] = ("enough", "instance")
MOST_SPANS = 64
"""Steps of a level whose attributions are asked for (R22: the top quarter of all components)."""
TOP = 0.25


class Stoppers(NamedTuple):
    """Detectors by level, what they read, and how good they are."""

    channels: dict[str, Channels]
    detectors: dict[str, Detector]
    reports: dict[str, DetectorReport]
    warnings: list[str]


def spans_of(plan: EarlyStopPlan, courses: Sequence[Course]) -> list[Span]:
    """The labels: a span per place that was tried, and one per trace that has its first steps."""
    spans = []
    for course in courses:
        key, last = course.trace.key, plan.settings.instance_steps - 1
        for step, right in zip(course.step_S.tolist(), course.right_S.tolist(), strict=True):
            if step >= 0:
                spans.append(Span(*key, "enough", step, step, failing=right > 0))
        if len(whole_steps(plan.ends, course.trace)) > last:
            easy = course.trace.prompt_id in plan.easy
            spans.append(Span(*key, "instance", 0, last, failing=easy))
    return spans


def learned(plan: EarlyStopPlan, model: "nn.Module", courses: Sequence[Course]) -> Stoppers:
    """Choose channels by attribution, and train a detector per level.

    A level that can't be learned is left out with a warning; raises BadInput when none remains.
    """
    settings = plan.settings
    traces = [course.trace for course in courses]
    spans = spans_of(plan, courses)
    channels, warnings = {}, []
    for level in STOPPING:
        own = [span for span in spans if span.level == level]
        if len({span.failing for span in own}) < 2:
            why = "every forced answer is right" if own and own[0].failing else "none is right"
            if level == "instance":
                why = f"hardly an answer has {settings.instance_steps} steps"
            warnings.append(f"{level} can't be learned: {why}.")
            continue
        channels[level] = _channels(plan, model, traces, own)
    if not channels:
        raise BadInput(f"no detector can be trained. {' '.join(warnings)}")
    watched, columns = union(channels)
    activations = track(
        read_back(model, traces, watched), what="read activations", total=len(traces)
    )
    samples = collect(
        traces, activations, [span for span in spans if span.level in channels], plan.ends,
        columns, plan.watch, judged="spans",
    )  # fmt: skip
    detectors, reports = {}, {}
    for level in channels:
        positions = "ends" if level == "enough" else settings.detector.positions
        try:
            found = train(samples[level], replace(settings.detector, positions=positions))
        except BadInput as error:
            warnings.append(f"{level} has no detector: {error}")
            continue
        detectors[level], reports[level] = found
    if not detectors:
        raise BadInput(f"no detector can be trained. {warnings[0]}")
    return Stoppers({v: channels[v] for v in detectors}, detectors, reports, warnings)


def _channels(
    plan: EarlyStopPlan, model: "nn.Module", traces: "Sequence[Trace]", spans: Sequence[Span]
) -> Channels:
    """The components that are among the highest attributions of most of the spans."""
    layer = attribution.middle_layer(model)
    here = block(model, layer)
    n_units = here.ffn.down.in_features
    k = max(1, round(TOP * (n_units + here.attention.n_heads)))
    failing = [span for span in spans if span.failing]
    drawn = Random(f"{plan.settings.seed} {spans[0].level}").sample(
        failing, min(MOST_SPANS, len(failing))
    )
    number = {trace.key: n for n, trace in enumerate(traces)}
    wanted = []
    for span in sorted(drawn, key=lambda span: (number[span.key], span.first)):
        steps = whole_steps(plan.ends, traces[number[span.key]])
        wanted.append(Where(number[span.key], ((steps[span.first].start, steps[span.last].end),)))
    kept = track(
        attribution.attribute(model, traces, wanted, layer=layer, k=k),
        what=f"attribution, {spans[0].level}", total=len(wanted),
    )  # fmt: skip
    chosen = attribution.elected([one.numbers for one in kept], plan.settings.channels)
    return Channels(
        layer, tuple(sorted(n for n in chosen if n < n_units)),
        tuple(sorted(n - n_units for n in chosen if n >= n_units)),
    )  # fmt: skip


def watched_courses(
    plan: EarlyStopPlan, model: "nn.Module", found: Stoppers, courses: Sequence[Course]
) -> list[Course]:
    """The courses with what the detectors say along them, as a monitor would read it."""
    traces = [course.trace for course in courses]
    watched, columns = union(found.channels)
    activations = track(read_back(model, traces, watched), what="read detectors", total=len(traces))
    return [
        _watched(plan, found, columns, course, x_TC)
        for course, x_TC in zip(courses, activations, strict=True)
    ]


def _watched(
    plan: EarlyStopPlan,
    found: Stoppers,
    columns: Mapping[str, Sequence[int]],
    course: Course,
    x_TC: Tensor,
) -> Course:
    enough_S, easy = np.full(len(course.step_S), np.nan), float("nan")
    steps, numbers = whole_steps(plan.ends, course.trace), course.step_S.tolist()
    end_of = {s: step.end for s, step in step_ends(plan, course.trace)}
    for level, detector in found.detectors.items():
        position_N, features_NCX = trace_features(x_TC, steps, level, plan.watch, columns[level])
        row_of = {position: n for n, position in enumerate(position_N.tolist())}
        wanted = [s for s in numbers if s >= 0] if level == "enough" else [course.read_after]
        wanted = [s for s in wanted if s in end_of]
        if not wanted:
            continue
        rows = [row_of[end_of[s] - 1] for s in wanted]
        with torch.no_grad():
            probability_N = detector.probability(features_NCX[rows].flatten(1)).double()
        # While decoding, it comes out otherwise in its last digits, which must not decide: near 1 a
        # threshold between two of them would stop any number of answers.
        chance = probability_N.numpy().round(DIGITS).tolist()
        if level == "enough":
            enough_S[[numbers.index(s) for s in wanted]] = chance
        else:
            easy = chance[0]
    return replace(course, enough_S=enough_S, easy=easy)
