"""What firings are worth, by labelled traces and trials; for `detectors` and `calibrate`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from surgeon import console
from surgeon.artifact import part
from surgeon.neureasoner.detectors import Interval
from surgeon.neureasoner.features import trace_features
from surgeon.neureasoner.steps import Span, StepEnds, separated, tag_begun, whole_steps
from surgeon.neureasoner.worth import NEVER, Readings, Worth
from surgeon.traces import Prompt, Trace
from surgeon.trigger.trials import Trial
from surgeon.watch.monitor import Monitor
from surgeon.watch.watching import is_read

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@part
class FiringEffect:
    """What forced firings did."""

    trials: int
    gain: Interval
    """Of the share of right answers: [mean, low, high], 95 % by problem."""
    tokens: Interval
    """Of an answer's tokens."""


@part
class LevelWorth:
    """What a level's firing is worth."""

    true: FiringEffect
    """At failing step ends."""
    false: FiringEffect
    """At sound ones."""
    best: float | None
    """The threshold that gains most; None where none gains."""
    gain: Interval
    """Change of the share of right answers at the threshold that is written. Expected by an
    answer's first firing; where it is `best`, thresholds are chosen on one half of the problems and
    counted on the other. Measured on whole answers where firings draw steps anew."""
    tokens: Interval
    """Change of an answer's tokens, those thrown away included."""
    fired_true: float
    """Share of the answers whose first firing is at a failing step end."""
    fired_false: float
    reason: str
    answers: int = 0
    """Answers on which gain and tokens were measured; 0: they are expected ones."""


class LevelReadings(NamedTuple):
    """The readings of a level, and where a firing can be tried."""

    readings: Readings
    ends: list[Trial]


def judged(
    tokenizer: "PreTrainedTokenizerBase",
    monitor: Monitor,
    levels: Sequence[str],
    prompts: Mapping[str, Prompt],
    traces: Sequence[Trace],
    activations: Sequence["torch.Tensor"],
    spans: Sequence[Span],
    columns: Mapping[str, Sequence[int]],
    numbers: Mapping[str, int],
) -> dict[str, LevelReadings]:
    """What each detector says at the step ends that were judged, as while decoding; `numbers` are
    the problems', by prompt id."""
    ends, watch = StepEnds(tokenizer, monitor.settings.thinking), monitor.settings
    failing: dict[tuple[str, int, str, int], bool] = {}
    for span in spans:
        for step in range(span.first, span.last + 1):
            at = (*span.key, span.level, step)
            failing[at] = failing.get(at, False) or span.failing
    rows: dict[str, list[tuple[float, bool, int, int]]] = {level: [] for level in levels}
    places: dict[str, list[Trial]] = {level: [] for level in levels}
    for t, (trace, x_TC) in enumerate(zip(traces, activations, strict=True)):
        steps, problem = whole_steps(ends, trace), numbers[trace.prompt_id]
        has_answer = prompts[trace.prompt_id].answer is not None
        for level in levels:
            position_N, feature_NCX = trace_features(x_TC, steps, level, watch, columns[level])
            if not len(position_N):
                continue
            probability_N = monitor.detectors[level].probability(feature_NCX.flatten(1))
            place = {int(p): n for n, p in enumerate(position_N.tolist())}
            for s, step in enumerate(steps):
                closing = not separated(ends, trace.token_ids, step)
                # A label of the first steps is of the whole answer.
                state = failing.get((*trace.key, level, 0 if level == "instance" else s))
                begun = tag_begun(ends, trace.token_ids, step)
                if state is None or not is_read(level, s, closing, watch, begun=begun):
                    continue
                probability = float(probability_N[place[step.end - 1]])
                rows[level].append((probability, state, t, problem))
                if has_answer and not closing:
                    back = step.start if watch.redraws(level) else step.end
                    places[level].append(Trial(level, state, trace, problem, step.end, back))
    return {
        level: LevelReadings(
            Readings(
                np.array([row[0] for row in own], float), np.array([row[1] for row in own], bool),
                np.array([row[2] for row in own], int), np.array([row[3] for row in own], int),
            ),
            places[level],
        )
        for level, own in rows.items()
    }  # fmt: skip


def threshold_of(value: float) -> float | None:
    """A threshold, or None where nothing fires."""
    return None if value == NEVER else value


def worth_part(found: Worth) -> LevelWorth:
    return LevelWorth(
        true=FiringEffect(**found.true._asdict()),
        false=FiringEffect(**found.false._asdict()),
        best=threshold_of(found.best),
        gain=found.gain, tokens=found.tokens, fired_true=found.fired_true,
        fired_false=found.fired_false, reason=found.reason, answers=found.answers,
    )  # fmt: skip


def show_worth(levels: Mapping[str, LevelWorth]) -> None:
    """Print what a true and a false firing are worth, and what that comes to."""
    if not levels:
        return
    columns = ("trials", "right, pp", "tokens")
    table = console.table("firing at", *columns)
    for level, row in levels.items():
        whole = f"measured, {row.answers} answers" if row.answers else "expected"
        for name, effect in (("failing", row.true), ("sound", row.false)):
            table.add_row(
                f"{level}, {name} ends", f"{effect.trials}", _points(effect.gain),
                _tokens(effect.tokens),
            )  # fmt: skip
        table.add_row(f"  {whole}", "", _points(row.gain), _tokens(row.tokens), style="dim")
    console.console().print(table)
    for level, row in levels.items():
        console.say(f"{level}: {row.reason}.")


def _points(value: Interval) -> str:
    middle, low, high = value
    if middle is None:
        return "-"
    ends = "" if low is None or high is None else f" ({100 * low:+.1f} to {100 * high:+.1f})"
    return f"{100 * middle:+.1f}{ends}"


def _tokens(value: Interval) -> str:
    middle, low, high = value
    if middle is None:
        return "-"
    return f"{middle:+.0f}" + (
        "" if low is None or high is None else f" ({low:+.0f} to {high:+.0f})"
    )
