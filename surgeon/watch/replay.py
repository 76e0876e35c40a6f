"""A monitored trace, read again: what its channels and its detectors did at every token.

Teacher forcing gives the activations of a finished trace in one pass, and the features of every
window with them. Where a detector was read, and where it could have fired, follows from the steps
and the firings by the rules of `Watch`.
"""

# Shapes: T tokens of the response, C channels of all levels together.

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from surgeon.channels import read_back
from surgeon.errors import BadInput
from surgeon.neureasoner.features import trace_features
from surgeon.neureasoner.steps import Step, StepEnds, separated, split_steps, tag_begun
from surgeon.settings.neureasoner import ENDING
from surgeon.traces import Trace, text_of, token_texts
from surgeon.watch.monitor import PRECEDENCE, Monitor
from surgeon.watch.watching import Firing, Reading, forced_tokens, is_read, union

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ReplayLevel(NamedTuple):
    """What a level's detector looks at, and what it said."""

    columns: list[int]
    """Its channels among all of the replay's."""
    threshold: float
    window: int
    """Steps that its features reach over."""
    probability_T: list[float | None]
    """After each token; None where the level is not defined."""


class ReplayReading(NamedTuple):
    """A reading as `Watch` keeps it, and the number of its step."""

    position: int
    level: str
    probability: float
    open: bool
    step: int


class ReplayFiring(NamedTuple):
    """A firing, and where its tokens stand in the trace."""

    position: int
    """Of the first forced token, the separator left out."""
    start: int
    """Of the separator that was forced before it, or `position`."""
    end: int
    """Behind the forced tokens, as far as they are in the trace."""
    level: str
    probability: float
    """As it was logged: found while decoding, or the rate of random firing."""
    read_back: float | None
    """Found here, in one pass: off by rounding, little in float32 and more in bfloat16."""
    step: int
    """Number of the failing step."""
    text: str
    """Of the failing step."""


class Replay(NamedTuple):
    """Activations, probabilities, readings and firings along a monitored trace."""

    prompt_id: str
    sample: int
    prompt: str
    finish_reason: str
    tokens: list[str]
    """The text that each token adds."""
    layer: int
    units: list[int]
    heads: list[int]
    """The channels: units first, then heads."""
    activation_TC: list[list[float]]
    """To four digits."""
    steps: list[Step]
    levels: dict[str, ReplayLevel]
    readings: list[ReplayReading]
    firings: list[ReplayFiring]


class _Fired(NamedTuple):
    """A firing and where it was decided."""

    firing: Firing
    read: int
    """Position of the reading it came from: the firing's own, or that of the separator which was
    forced before it."""
    end: int
    """Of the forced tokens, as far as they are in the trace."""
    forced: int
    """Tokens forced from `read` on, those that were cut off included."""


def replay(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    monitor: Monitor,
    trace: Trace,
    firings: Sequence[Firing],
) -> Replay:
    """Read a monitored trace again, with the firings that were logged of it.

    Raises BadInput for firings that don't belong to the trace or to the monitor, and as `read_back`
    does.
    """
    settings, ids = monitor.settings, trace.token_ids
    ends = StepEnds(tokenizer, settings.thinking)
    steps = split_steps(ends, ids)
    channels, columns = union(monitor.channels)
    (x_TC,) = read_back(model, [trace], channels)
    probability_T = {
        level: _probabilities(monitor, level, x_TC, steps, columns[level])
        for level in monitor.levels
    }
    fired = [
        _place(firing, tokenizer, monitor, trace, steps, ends, probability_T)
        for firing in sorted(firings, key=lambda firing: firing.position)
    ]
    readings = _readings(monitor, ids, steps, ends, fired, probability_T)
    return Replay(
        trace.prompt_id,
        trace.sample,
        text_of(tokenizer, trace.prompt_token_ids),
        trace.finish_reason,
        token_texts(tokenizer, ids),
        channels.layer,
        list(channels.units),
        list(channels.heads),
        [[float(f"{x:.4g}") for x in x_C] for x_C in x_TC.tolist()],
        steps,
        {
            level: ReplayLevel(
                columns[level], monitor.thresholds[level], settings.steps(level), known_T
            )
            for level, known_T in probability_T.items()
        },
        [ReplayReading(*reading, _step_at(steps, reading.position)) for reading in readings],
        [
            ReplayFiring(
                firing.position, read, end, firing.level, firing.probability,
                probability_T[firing.level][read - 1], _step_at(steps, read), firing.step,
            )
            for firing, read, end, _ in fired
        ],
    )  # fmt: skip


def _probabilities(
    monitor: Monitor, level: str, x_TC: Tensor, steps: Sequence[Step], columns: Sequence[int]
) -> list[float | None]:
    """The detector's answer after each token; None outside of the level's steps."""
    position_N, features_NCX = trace_features(x_TC, steps, level, monitor.settings, columns)
    probability_T: list[float | None] = [None] * len(x_TC)
    if len(position_N):
        detector = monitor.detectors[level]
        probability_N = detector.probability(features_NCX.flatten(1).to(detector.mean_X.device))
        for position, probability in zip(position_N.tolist(), probability_N.tolist(), strict=True):
            probability_T[position] = probability
    return probability_T


def _place(
    firing: Firing,
    tokenizer: "PreTrainedTokenizerBase",
    monitor: Monitor,
    trace: Trace,
    steps: Sequence[Step],
    ends: StepEnds,
    probability_T: Mapping[str, Sequence[float | None]],
) -> _Fired:
    """Where a firing was decided, and how far its tokens reach."""
    position, level, ids = firing.position, firing.level, trace.token_ids
    who = f"prompt {trace.prompt_id!r}, sample {trace.sample}"
    if level not in monitor.levels:
        raise BadInput(
            f"{who}: found a firing of {level!r}, expected some of this monitor's levels: "
            f"{', '.join(monitor.levels)}."
        )
    if firing.redrawn is not None:
        # Decided at the end of a step that is gone; the one in its place is shown.
        own = [step.end for step in steps if step.start <= position]
        at = own[-1] if own else position
        return _Fired(firing, at, at, 0)
    forced = forced_tokens(tokenizer, monitor.settings, level)
    places = [position] if any(step.end == position for step in steps) else []
    # The last step of the thinking has no separator of its own: one was forced with the trigger.
    for count in (1, 2) if level not in ENDING else ():
        at = position - count
        separator = ends.separator_after(ids[at - 1]) if 0 < at < len(ids) else []
        inside = any(step.start < at < step.end for step in steps)
        if inside and len(separator) == count and ids[at:position] == separator[: len(ids) - at]:
            places.append(at)
    there = ids[position : position + len(forced)]
    if not places or there != forced[: len(there)]:
        raise BadInput(
            f"{who}: found no end of a step with the tokens of {level!r} after it at position "
            f"{position}, where it fired: the firings are of another trace or another monitor."
        )

    def off(at: int) -> float:
        known = probability_T[level][at - 1]
        return 1.0 if known is None else abs(known - firing.probability)

    # Which of the two it was can't be seen in the tokens, but in the probability.
    read = min(places, key=off)
    end = min(position + len(forced), len(ids))
    return _Fired(firing, read, end, position - read + len(forced))


def _readings(
    monitor: Monitor,
    ids: Sequence[int],
    steps: Sequence[Step],
    ends: StepEnds,
    fired: Sequence[_Fired],
    probability_T: Mapping[str, Sequence[float | None]],
) -> list[Reading]:
    """What every detector said at the step ends, by the rules of `Watch`."""
    settings = monitor.settings
    by_place = {one.read: one for one in fired}
    # (position, number of the step, whether the step's separator is missing); the last token of a
    # response is never fed.
    moments = [
        (step.end, s, not separated(ends, ids, step))
        for s, step in enumerate(steps)
        if step.end < len(ids)
    ]
    known = {position for position, _, _ in moments}
    moments += [(at, _step_at(steps, at), True) for at in by_place if at not in known]
    readings: list[Reading] = []
    quiet, fires, forced = 0, 0, range(0)
    for position, s, closing in sorted(moments):
        busy = position in forced
        if closing and busy:
            continue
        may = not busy and s >= quiet and fires < settings.cap
        for level in PRECEDENCE:
            begun = closing and tag_begun(ends, ids, steps[s])
            if level in monitor.levels and is_read(level, s, closing, settings, begun=begun):
                probability = probability_T[level][position - 1]
                assert probability is not None
                readings.append(Reading(position, level, probability, may))
            may &= position not in by_place or by_place[position].firing.level != level
        if position in by_place:
            fires, quiet = fires + 1, s + 1 + settings.cooldown
            # Read after each forced token but the last.
            forced = range(position + 1, position + by_place[position].forced)
    return readings


def _step_at(steps: Sequence[Step], position: int) -> int:
    """Number of the step that holds the token before a position."""
    return bisect_left(steps, position, key=lambda step: step.start) - 1
