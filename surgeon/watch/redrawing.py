"""Instead of a forced token: the step at which a detector fired is drawn anew.

`resample` draws it until nothing fires or the draws are used up. `choose` draws it so many times
more and keeps the one that the detector finds least like a failure (detectors as verifiers of
steps, arXiv:2601.14210). Neither needs a trained trigger. Firings that end the thinking do so.
"""

# Shapes: B rows of the batch.

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from surgeon.decoding import Rewind, stream_key
from surgeon.decoding.choosing import uniforms
from surgeon.watch.monitor import Monitor
from surgeon.watch.watching import Firing, Reading, Watching

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

ALL = 1 << 62
"""More tokens than any answer has."""


class _Draw(NamedTuple):
    """A step as it was drawn."""

    probability: float
    """That it fails."""
    token_ids: list[int]
    after: list[int]
    """The tokens that close the thinking, where it ended so."""


@dataclass
class _Redraw:
    """A step that is drawn anew."""

    level: str
    start: int
    """Position of its first token."""
    draws: list[_Draw] = field(default_factory=list)
    chosen: bool = False
    """One of the draws has been chosen, and comes once more."""


@dataclass
class _Past:
    """What has been decided of an answer, whichever row it sits in."""

    until: int = 0
    """Up to this position, a step's end."""
    rest: int = 0
    """Number of the step from whose end on something may fire again."""
    redraw: _Redraw | None = None


class Redrawing(Watching):
    """A watch that sends answers back to the beginning of a failing step.

    Under random firing, the control, a step that fires is drawn anew once (resample), or as often
    as else, and one of the draws is kept at random (choose). Parameters and errors are those of
    `Watching`.
    """

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self._past: dict[int, _Past] = {}

    def seat(self, slot: int, index: int) -> None:
        """Request `index` starts in row `slot`; one that starts again keeps what was decided."""
        before = self._past.setdefault(index, _Past())
        firings, readings = self.firings.get(index, []), self.readings.get(index, [])
        super().seat(slot, index)
        # What came later is decided again, alike; a redraw that is under way has its firing.
        kept = before.until if before.redraw is None else before.redraw.start
        self.firings[index] = [one for one in firings if _at(one) <= kept]
        self.readings[index] = [
            one for one in readings if before.redraw or one.position <= before.until
        ]
        self._quiet_B[slot] = before.rest

    def take(self, index: int) -> tuple[list[Firing], list[Reading]]:
        """The firings and readings of a request that has ended, which are then forgotten."""
        self._past.pop(index, None)
        return super().take(index)

    def settled(self, slot: int) -> int:
        """So many tokens of the answer in this row are never taken back."""
        return ALL if self.steps.over_B[slot] else int(self.steps.start_B[slot])

    def _decide(
        self, ended_B: np.ndarray, closing_B: np.ndarray, busy_B: np.ndarray, chosen_B: np.ndarray
    ) -> dict[int, list[int] | Rewind]:
        """Judge the steps that were drawn anew, then the others as usual."""
        new_B, wanted = np.ones(len(ended_B), bool), {}
        for b in np.flatnonzero(ended_B | closing_B).tolist():
            past = self._past[self.index_B[b]]
            if past.redraw is not None:
                new_B[b] = False
                back = self._judge(b, past.redraw, closing_B[b], int(chosen_B[b]))
                if back is not None:
                    wanted[b] = back
            elif self.steps.position_B[b] <= past.until:
                new_B[b] = False
        self._chosen_B = chosen_B
        wanted |= super()._decide(ended_B & new_B, closing_B & new_B, busy_B, chosen_B)
        for b in np.flatnonzero((ended_B | closing_B) & new_B).tolist():
            # A forced text comes again with its decision.
            if b not in wanted:
                self._past[self.index_B[b]].until = int(self.steps.position_B[b])
        return wanted

    def _fire(self, b: int, level: str, probability: float, closing: bool) -> list[int] | Rewind:
        if not self.settings.redraws(level):
            return super()._fire(b, level, probability, closing)
        index, text = self.index_B[b], self.tokenizer.decode(self._ids[b])
        start = int(self.steps.start_B[b])
        self.firings[index].append(Firing(start, level, probability, str(text).strip(), 0))
        redraw = self._past[index].redraw = _Redraw(level, start)
        return self._again(b, redraw, self._drawn_step(b, probability, closing))

    def _drawn_step(self, b: int, probability: float, closing: bool) -> _Draw:
        return _Draw(probability, list(self._ids[b]), self._close(b, closing, self._chosen_B[b]))

    def _close(self, b: int, closing: bool, chosen: int) -> list[int]:
        """The tokens that close the thinking after a step, if it is over with it."""
        return [*(token_id for token_id, _ in self._held[b]), int(chosen)] if closing else []

    def _again(self, b: int, redraw: _Redraw, last: _Draw) -> Rewind:
        """Back to the step's beginning, after another draw of it."""
        redraw.draws.append(last)
        fired = self.firings[self.index_B[b]]
        # With those of a closing tag but its last, which was chosen and not yet written.
        gone = len(last.token_ids) + max(0, len(last.after) - 1)
        tokens = (fired[-1].redrawn or 0) + gone
        fired[-1] = fired[-1]._replace(redrawn=tokens)
        return Rewind(redraw.start, len(redraw.draws))

    def _judge(self, b: int, redraw: _Redraw, closing: bool, chosen: int) -> Rewind | None:
        """What follows another draw of a step: None where it stays."""
        if redraw.chosen:
            return self._settle(b)
        level, position = redraw.level, int(self.steps.position_B[b])
        (probability,) = self._probabilities(level, [b])
        random, more = self.random_rate is not None, self.settings.draws - len(redraw.draws)
        if not random:
            self.readings[self.index_B[b]].append(Reading(position, level, probability, False))
        now = _Draw(probability, list(self._ids[b]), self._close(b, closing, chosen))
        if self.settings.action == "resample":
            if random or more <= 0 or probability < self.thresholds[level]:
                return self._settle(b)
            return self._again(b, redraw, now)
        if more > 0:
            return self._again(b, redraw, now)
        draws = [*redraw.draws, now]
        best = self._best(b, draws)
        if best == len(draws) - 1:
            return self._settle(b)
        redraw.chosen = True
        back = self._again(b, redraw, now)
        return Rewind(back.length, back.number, [*draws[best].token_ids, *draws[best].after])

    def _best(self, b: int, draws: list[_Draw]) -> int:
        if self.random_rate is None:
            return min(range(len(draws)), key=lambda n: draws[n].probability)
        place = f"random choice {self.steps.start_B[b]}"
        number = uniforms(stream_key(self.seed, place, self.index_B[b]), 0)[0]
        return int(number * len(draws))

    def _settle(self, b: int) -> None:
        """The step stays as it is."""
        past = self._past[self.index_B[b]]
        past.redraw, past.until = None, int(self.steps.position_B[b])
        self._quiet_B[b] = past.rest = int(self.steps.count_B[b]) + 1 + self.settings.cooldown


def _at(firing: Firing) -> int:
    return firing.position


def watch_of(
    model: "nn.Module", tokenizer: "PreTrainedTokenizerBase", monitor: Monitor, **given: Any
) -> Watching:
    """A monitor's watch that does what its settings say; parameters and errors are those of
    `Watching`."""
    if monitor.settings.action == "trigger":
        return Watching(model, tokenizer, monitor, **given)
    return Redrawing(model, tokenizer, monitor, **given)
