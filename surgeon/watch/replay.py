"""A monitored trace, read again: what its channels and its detectors did at every token.

Teacher forcing gives the activations of a finished trace in one pass, and the features of every
window with them. Where a detector was read, and where it could have fired, follows from the steps
and the firings by the rules of `Watching`.
"""

# Shapes: T tokens of the response, C channels of all levels together.

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from surgeon.channels import read_back
from surgeon.errors import BadInput
from surgeon.neureasoner.features import trace_features
from surgeon.neureasoner.steps import Step, StepEnds, split_steps
from surgeon.traces import Trace, text_of, token_texts
from surgeon.watch.monitor import PRECEDENCE, Monitor
from surgeon.watch.watching import Firing, Reading, forced_tokens, union

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class _Fired(NamedTuple):
    """A firing and where it stands in the trace."""

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
    firings: Sequence[Firing | Mapping[str, Any]],
) -> dict[str, Any]:
    """Activations, probabilities, readings and firings along a monitored trace; JSON.

    `firings` are those of the trace, or rows of `firings.jsonl`, of which those of other traces are
    left out. Of the result:

    - `prompt_id`, `sample`, `prompt`, `finish_reason`; `tokens`, the text each token adds
    - `layer`, `units`, `heads`: the channels, units first; `activation_TC`
    - `steps`: [start, end) of each
    - `levels`: by level `columns` among the channels, `threshold`, `window` (steps) and
      `probability_T`, after each token (None where the level is not defined)
    - `readings`: as `Watching` keeps them, with the `step`'s number
    - `firings`: `position` and `end` of the forced tokens, `start` with the separator forced before
      them, the failing `step`'s number and its `text`, the logged `probability` and the one
      `read_back` here

    The logged probability was found while decoding, the other in one pass: they differ by rounding,
    little in float32 and more in bfloat16. Of random firing the logged one is the rate. Raises
    BadInput for firings that don't belong to the trace or to the monitor, and as `read_back` does.
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
        for firing in _own(firings, trace)
    ]
    readings = _readings(monitor, ids, steps, ends, fired, probability_T)
    return {
        "prompt_id": trace.prompt_id,
        "sample": trace.sample,
        "prompt": text_of(tokenizer, trace.prompt_token_ids),
        "finish_reason": trace.finish_reason,
        "tokens": token_texts(tokenizer, ids),
        "layer": channels.layer,
        "units": list(channels.units),
        "heads": list(channels.heads),
        "activation_TC": [[_short(x) for x in x_C] for x_C in x_TC.tolist()],
        "steps": [list(step) for step in steps],
        "levels": {
            level: {
                "columns": columns[level],
                "threshold": monitor.thresholds[level],
                "window": settings.steps(level),
                "probability_T": probability_T[level],
            }
            for level in monitor.levels
        },
        "readings": [
            {**reading._asdict(), "step": _step_at(steps, reading.position)} for reading in readings
        ],
        "firings": [
            {
                "position": one.firing.position,
                "start": one.read,
                "end": one.end,
                "level": one.firing.level,
                "probability": one.firing.probability,
                "read_back": probability_T[one.firing.level][one.read - 1],
                "step": _step_at(steps, one.read),
                "text": one.firing.step,
            }
            for one in fired
        ],
    }


def _own(firings: Sequence[Firing | Mapping[str, Any]], trace: Trace) -> list[Firing]:
    """The trace's firings, in order of position."""
    found = []
    for row in firings:
        if isinstance(row, Mapping):
            name = row.get("prompt_id", trace.prompt_id), row.get("sample", trace.sample)
            if name != (trace.prompt_id, trace.sample):
                continue
            row = Firing(*(row[field] for field in Firing._fields))
        found.append(row)
    return sorted(found, key=lambda firing: firing.position)


def _probabilities(
    monitor: Monitor, level: str, x_TC: Tensor, steps: Sequence[Step], columns: Sequence[int]
) -> list[float | None]:
    """The detector's answer after each token; None outside of the level's steps."""
    position_N, features_NCX = trace_features(x_TC, steps, level, monitor.settings, columns)
    found: list[float | None] = [None] * len(x_TC)
    if len(position_N):
        detector = monitor.detectors[level]
        probability_N = detector.probability(features_NCX.flatten(1).to(detector.mean_X.device))
        for position, probability in zip(position_N.tolist(), probability_N.tolist(), strict=True):
            found[position] = probability
    return found


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
    forced = forced_tokens(tokenizer, monitor.settings, level)
    places = [position] if any(step.end == position for step in steps) else []
    # The last step of the thinking has no separator of its own: one was forced with the trigger.
    for count in (1, 2) if level != "instance" else ():
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
    """What every detector said at the step ends, by the rules of `Watching`."""
    settings = monitor.settings
    by_place = {one.read: one for one in fired}
    # (position, number of the step, whether the step's separator is missing); the last token of a
    # response is never fed.
    moments = [
        (step.end, s, not ends.after(ids[max(step.end - 2, 0)], ids[step.end - 1]))
        for s, step in enumerate(steps)
        if step.end < len(ids)
    ]
    known = {position for position, _, _ in moments}
    moments += [(at, _step_at(steps, at), True) for at in by_place if at not in known]
    found: list[Reading] = []
    quiet, made, forced = 0, 0, range(0)
    for position, s, closing in sorted(moments):
        busy = position in forced
        if closing and busy:
            continue
        may = not busy and s >= quiet and made < settings.cap
        for level in PRECEDENCE:
            early = not closing and s == settings.instance_steps - 1
            if level in monitor.levels and (level != "instance" or early):
                probability = probability_T[level][position - 1]
                assert probability is not None
                found.append(Reading(position, level, probability, may))
            may &= position not in by_place or by_place[position].firing.level != level
        if position in by_place:
            made, quiet = made + 1, s + 1 + settings.cooldown
            # Read after each forced token but the last.
            forced = range(position + 1, position + by_place[position].forced)
    return found


def _step_at(steps: Sequence[Step], position: int) -> int:
    """Number of the step that holds the token before a position."""
    return bisect_left(steps, position, key=lambda step: step.start) - 1


def _short(value: float) -> float:
    """Four digits: what is drawn needs no more."""
    return float(f"{value:.4g}")
