"""Watching a batch decode: detectors at the step ends of every row, tokens forced when one fires.

Sec. 3.3. `Watching` is what `surgeon.decoding` calls a watcher. It sees each row's activations
after every token, all rows at once, and reads detectors only where a step has ended.
"""

# Shapes: B rows of the batch, C channels of all levels together, N rows that are read.

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from surgeon.channels import Channels, Tap, tapped
from surgeon.decoding import Rewind, stream_key
from surgeon.decoding.choosing import STREAM_BLOCK, uniforms
from surgeon.errors import BadInput
from surgeon.neureasoner.features import OnlineFeatures
from surgeon.neureasoner.steps import StepEnds, StepRows, thinking_tags
from surgeon.settings.neureasoner import AROUND, ENDING, Tags, WatchSettings
from surgeon.watch.monitor import PRECEDENCE, Monitor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Firing(NamedTuple):
    """A detector fired and the next token was forced."""

    position: int
    """Of the trigger token, or of the finish text's first, among the response's tokens; where a
    step was drawn anew, of its first."""
    level: str
    probability: float
    """The detector's; for random firing the rate."""
    step: str
    """Text of the step that ended there, or was thrown away."""
    redrawn: int | None = None
    """Tokens that were decoded there beside those that stayed; None where tokens were forced."""

    def row(self) -> dict[str, int | float | str]:
        """As JSON."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class Reading(NamedTuple):
    """What a detector said at the end of a step."""

    position: int
    """Of the token after the step."""
    level: str
    probability: float
    open: bool
    """It would have fired at or above its threshold: no cool-down, no cap, no level before it."""


def union(channels: Mapping[str, Channels]) -> tuple[Channels, dict[str, list[int]]]:
    """All levels' channels together, and the columns of each level among them.

    What `collect` and `OnlineFeatures` take, so that a unit of two levels is read once.
    """
    layer = next(iter(channels.values())).layer
    units = tuple(sorted({unit for c in channels.values() for unit in c.units}))
    heads = tuple(sorted({head for c in channels.values() for head in c.heads}))
    columns = {
        level: [units.index(u) for u in c.units] + [len(units) + heads.index(h) for h in c.heads]
        for level, c in channels.items()
    }
    return Channels(layer, units, heads), columns


class Watch:
    """Reads a monitor's detectors for the rows of a batch, and says which tokens to force.

    Whoever feeds the rows hands over each token with the channels' activations at it; no model runs
    here. `levels` leaves the others out. With `random_rate`, a control, no detector is asked: each
    of its levels fires with that chance wherever its detector would have been read, by a stream of
    its own for each request and seed. Raises BadInput for a level or a rate that the monitor has no
    detector for, and where the tokenizer lacks a trigger token.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        monitor: Monitor,
        *,
        random_rate: Mapping[str, float] | None = None,
        seed: int = 0,
        levels: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.tokenizer, self.monitor = tokenizer, monitor
        self.settings, self.seed, self.random_rate = monitor.settings, seed, random_rate
        wanted = monitor.levels if levels is None else tuple(levels)
        if random_rate is not None:
            wanted = tuple(level for level in wanted if level in random_rate)
            check_rates(random_rate, monitor.levels)
        for level in wanted:
            if level not in monitor.levels:
                raise BadInput(
                    f"found the level {level!r}, expected some of this monitor's: "
                    f"{', '.join(monitor.levels)}."
                )
        self.levels = tuple(level for level in PRECEDENCE if level in wanted)
        self.forced = {
            level: forced_tokens(tokenizer, self.settings, level)
            for level in self.levels
            if not self.settings.redraws(level)
        }
        self.firings: dict[int, list[Firing]] = {}
        """By request, in order of position."""
        self.readings: dict[int, list[Reading]] = {}
        """By request: every answer of a detector (none under random firing)."""
        self.steps = StepRows(StepEnds(tokenizer, self.settings.thinking), 0)
        self.index_B: list[int] = []
        """The request in each row."""
        self._ids: list[list[int]] = []
        """Tokens of each row's current step."""
        self._held: list[list[tuple[int, Tensor | None]]] = []
        """Tokens of each row that may be of a tag, with their activations."""
        self._new_B = np.zeros(0, bool)
        self._quiet_B = np.zeros(0, np.int64)
        """Number of the step from whose end on something may fire again."""
        self._queue_B = np.zeros(0, np.int64)
        """Forced tokens that are still to come."""
        self.channels: Channels | None = None
        """What is to be read of each token; None where no detector is asked."""
        if random_rate is None and self.levels:
            self.channels, self.columns = union({v: monitor.channels[v] for v in self.levels})
            self.detectors = {v: deepcopy(monitor.detectors[v]).to(device) for v in self.levels}
            self.thresholds = monitor.thresholds
            self.online = OnlineFeatures(0, self.channels.size, self.settings, device)

    def seat(self, slot: int, index: int) -> None:
        """Request `index` starts in row `slot`; whatever was seen of it before is forgotten."""
        self._grow(slot + 1)
        self.steps.seat(slot)
        if self.channels is not None:
            self.online.reset(slot)
        self.index_B[slot], self._ids[slot], self._new_B[slot] = index, [], True
        self._held[slot] = []
        self._quiet_B[slot] = self._queue_B[slot] = 0
        self.firings[index], self.readings[index] = [], []

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        """The requests of some rows now sit in others."""
        source, target = list(source), list(target)
        self._grow(max(target, default=-1) + 1)
        self.steps.move(source, target)
        if self.channels is not None:
            self.online.move(source, target)
        for array in (self._new_B, self._quiet_B, self._queue_B):
            array[target] = array[source]
        for old, new in zip(source, target, strict=True):
            self.index_B[new], self._ids[new] = self.index_B[old], list(self._ids[old])
            self._held[new] = list(self._held[old])

    def read(
        self, slots: Sequence[int], fed_B: Tensor, chosen_B: Tensor, x_BC: Tensor | None
    ) -> dict[int, list[int] | Rewind]:
        """The tokens to force, by row, after the tokens `fed_B`, whose activations are `x_BC`.

        `x_BC` may be None where no detector is asked, and while only prompts are fed.
        """
        if not self.levels or not len(slots):
            return {}
        n = len(fed_B)
        self._grow(n)
        rows = len(self.index_B)
        fed, chosen = np.zeros((2, rows), np.int64)
        fed[:n], chosen[:n] = fed_B.cpu().numpy(), chosen_B.cpu().numpy()
        live_B = np.zeros(rows, bool)
        live_B[list(slots)] = True
        # A row's first pass feeds the prompt's last token, which is no part of the response.
        live_B &= ~self._new_B
        self._new_B[list(slots)] = False
        live_B &= ~self.steps.over_B
        if not live_B.any():
            return {}
        counted_B, ended_B = self._count(fed, live_B, x_BC)
        # Forced tokens come as decided; what they bring about is looked at once they are through.
        busy_B = live_B & (self._queue_B > 0)
        self._queue_B -= busy_B
        last_B = counted_B | (live_B & (self.steps.held_B > 0))
        if not last_B.any():
            return {}
        closing_B = last_B & ~ended_B & self.steps.closing(chosen) & ~busy_B
        if not (ended_B | closing_B).any():
            return {}
        forced = self._decide(ended_B, closing_B, busy_B, chosen)
        for b, one in forced.items():
            if isinstance(one, Rewind):
                ended_B[b] = False
                self._back(b)
        self.steps.begin_step(ended_B)
        ended = np.flatnonzero(ended_B).tolist()
        if self.channels is not None:
            self.online.end_step(ended)
        for b in ended:
            self._ids[b] = []
        return forced

    def _count(
        self, fed: np.ndarray, live_B: np.ndarray, x_BC: Tensor | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(counted_B, ended_B) for the tokens that were fed, and those held before them."""
        counted_B, opened_B, ended_B = self.steps.push(fed, live_B)
        for b, count in self.steps.freed.items():
            for token_id, x_C in self._held[b][:count]:
                self._ids[b].append(token_id)
                if self.channels is not None:
                    assert x_C is not None
                    one_B = np.arange(b + 1) == b
                    self.online.push(x_C.expand(b + 1, -1), one_B)
            del self._held[b][:count]
        for b in np.flatnonzero(opened_B).tolist():
            self._ids[b], self._held[b] = [], []
            if self.channels is not None:
                self.online.reset(b)
        counted = np.flatnonzero(counted_B).tolist()
        for b in counted:
            self._ids[b].append(int(fed[b]))
        if self.channels is not None and counted:
            assert x_BC is not None
            self.online.push(x_BC, counted_B[: len(x_BC)])
        for b in np.flatnonzero(live_B & (self.steps.held_B > 0)).tolist():
            self._held[b].append((int(fed[b]), None if x_BC is None else x_BC[b].clone()))
        return counted_B, ended_B

    def _back(self, b: int) -> None:
        """The row's step begins anew: the token before it is fed again first."""
        self.steps.rewind(b)
        if self.channels is not None:
            self.online.rewind(b, len(self._ids[b]))
        self._ids[b], self._held[b], self._new_B[b] = [], [], True

    def take(self, index: int) -> tuple[list[Firing], list[Reading]]:
        """The firings and readings of a request that has ended, which are then forgotten."""
        return self.firings.pop(index, []), self.readings.pop(index, [])

    # a step has ended

    def _decide(
        self, ended_B: np.ndarray, closing_B: np.ndarray, busy_B: np.ndarray, _: np.ndarray
    ) -> dict[int, list[int] | Rewind]:
        """Read the detectors of the rows at a step's end; the tokens to force, by row."""
        rows = np.flatnonzero(ended_B | closing_B).tolist()
        fired: dict[int, tuple[str, float]] = {}
        for level in self.levels:
            at = [
                b
                for b in rows
                if is_read(
                    level, int(self.steps.count_B[b]), bool(closing_B[b]), self.settings,
                    begun=bool(self.steps.held_B[b]),
                )
            ]  # fmt: skip
            if not at:
                continue
            for b, probability in zip(at, self._probabilities(level, at), strict=True):
                index, position = self.index_B[b], int(self.steps.position_B[b])
                may = (
                    b not in fired
                    and len(self.firings[index]) < self.settings.cap
                    and bool(self.steps.count_B[b] >= self._quiet_B[b] and not busy_B[b])
                )
                if self.random_rate is None:
                    self.readings[index].append(Reading(position, level, probability, may))
                    fires = probability >= self.thresholds[level]
                else:
                    fires = self._drawn(level, b) < probability
                if may and fires:
                    fired[b] = level, probability
        return {b: self._fire(b, *what, bool(closing_B[b])) for b, what in fired.items()}

    def _probabilities(self, level: str, rows: list[int]) -> list[float]:
        if self.channels is None:
            assert self.random_rate is not None
            return [float(self.random_rate[level])] * len(rows)
        features_NCX = self.online.features(level, rows, self.columns[level])
        return self.detectors[level].probability(features_NCX.flatten(1)).tolist()

    def _drawn(self, level: str, b: int) -> float:
        """A number of the request's own stream for this level, one per step."""
        key = stream_key(self.seed, f"random firing {level}", self.index_B[b])
        block, at = divmod(int(self.steps.count_B[b]), STREAM_BLOCK)
        return float(uniforms(key, block)[at])

    def _fire(self, b: int, level: str, probability: float, closing: bool) -> list[int] | Rewind:
        text = str(self.tokenizer.decode(self._ids[b], clean_up_tokenization_spaces=False))
        # A trigger follows a separator wherever it stands; forced, it ends the step as any other.
        before = self.steps.ends.separator_after(self._ids[b][-1]) if closing else []
        position = int(self.steps.position_B[b]) + len(before)
        self.firings[self.index_B[b]].append(Firing(position, level, probability, text.strip()))
        self._quiet_B[b] = self.steps.count_B[b] + 1 + self.settings.cooldown
        forced = [*before, *self.forced[level]]
        self._queue_B[b] = len(forced) - 1
        return forced

    def _grow(self, rows: int) -> None:
        more = rows - len(self.index_B)
        if more <= 0:
            return
        self.steps.grow(rows)
        if self.channels is not None:
            self.online.grow(rows)
        self.index_B += [-1] * more
        self._ids += [[] for _ in range(more)]
        self._held += [[] for _ in range(more)]
        self._new_B, self._quiet_B, self._queue_B = (
            np.pad(array, (0, more)) for array in (self._new_B, self._quiet_B, self._queue_B)
        )


class Watching(Watch):
    """Watches a model decode, with that checkpoint's monitor: what `surgeon.decoding` calls a
    watcher. Parameters and errors are those of `Watch`.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: "PreTrainedTokenizerBase",
        monitor: Monitor,
        *,
        random_rate: Mapping[str, float] | None = None,
        seed: int = 0,
        levels: Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            tokenizer, monitor, random_rate=random_rate, seed=seed, levels=levels,
            device=next(model.parameters()).device,
        )  # fmt: skip
        self.model = model
        self._tap: Tap | None = None
        if self.channels is not None:
            # Hooked as long as the watch lives, which is cheaper than anew for every pass.
            hooks = ExitStack()
            self._tap = hooks.enter_context(tapped(model, self.channels))
            self._tap.on = False
            weakref.finalize(self, hooks.close)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Activations are seen inside the block."""
        if self._tap is None:
            yield
            return
        self._tap.on = True
        try:
            yield
        finally:
            self._tap.on = False

    def look(
        self, slots: Sequence[int], fed_B: Tensor, chosen_B: Tensor
    ) -> dict[int, list[int] | Rewind]:
        """The tokens to force, by row, after a pass over the tokens `fed_B`."""
        x_BC = None if self._tap is None else self._tap.last[:, -1]
        return self.read(slots, fed_B, chosen_B, x_BC)


def is_read(
    level: str, step: int, closing: bool, settings: WatchSettings, *, begun: bool = False
) -> bool:
    """Does a level have something to say at the end of that step, which is a `closing` one where
    the thinking is over without it?

    Where the closing tag has `begun`, whose first tokens were taken for the step's until they were
    a tag, nothing can be forced any more; the step can be drawn anew.
    """
    if level == "instance":
        # Over the first K steps: read once, when they are complete and more would follow.
        return not closing and step == settings.instance_steps - 1
    if level in ENDING or (begun and not settings.redraws(level)):
        return not closing
    return True


def with_tags(
    settings: WatchSettings,
    tokenizer: "PreTrainedTokenizerBase",
    tags: Tags | None = None,
    *,
    closes: bool,
) -> WatchSettings:
    """The settings with the tags that a model thinks between, by default those of `thinking_tags`.

    `closes` says whether its answers do think so; it is asked where no single token closes.
    """
    tags = tags or thinking_tags(tokenizer)
    spelt = tags[1] not in tokenizer.get_vocab()
    return replace(
        settings, thinking=tags, around=AROUND.get(tags, settings.around),
        closes=True if spelt and closes else None,
    )  # fmt: skip


def forced_tokens(
    tokenizer: "PreTrainedTokenizerBase", settings: WatchSettings, level: str
) -> list[int]:
    """What a firing forces: the level's trigger token, or the finish text and the end of thinking.

    Raises BadInput where the tokenizer has no such trigger token, or can't write the closing tag.
    """
    vocabulary = tokenizer.get_vocab()
    if level in settings.triggers:
        trigger = settings.triggers[level]
        if trigger not in vocabulary:
            raise BadInput(
                f"the tokenizer has no token {trigger!r}, which is to be forced at the {level} "
                "level: make one with `surgeon trigger sft`, or leave the level out."
            )
        return [vocabulary[trigger]]
    before, after = settings.around
    close = settings.thinking[1]
    # What comes before an empty text is the end of a step, and has its separator already.
    before = before if settings.finish else before.lstrip()
    closes = close in vocabulary if settings.closes is None else settings.closes
    text = settings.finish + (before + close + after if closes else after)
    ids = before_more(tokenizer, text)
    if closes and close not in tokenizer.decode(ids, clean_up_tokenization_spaces=False):
        raise BadInput(
            f"the tokenizer writes {tokenizer.decode(ids)!r} for {text!r}, expected {close} in it. "
            "Name the tags of this model with --think-tags 'OPEN CLOSE'."
        )
    return ids


def before_more(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """The tokens of a text that goes on: GPT-2's pieces, and those of its like, have other tokens
    for line breaks that end a text than for those that a word follows."""
    alone, more = (
        list(tokenizer(some, add_special_tokens=False)["input_ids"])  # pyright: ignore
        for some in (text, text + "A")
    )

    def said(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    return more[:-1] if said(more[:-1]) == said(alone) else alone


def check_rates(rates: Mapping[str, float], levels: Sequence[str]) -> None:
    """Raise BadInput for a rate that is no chance, or of none of these levels."""
    for level, rate in rates.items():
        if level not in levels or not isinstance(rate, int | float) or not 0 <= rate <= 1:
            raise BadInput(
                f"found the random rate {rate!r} for {level!r}, expected a chance from 0 to 1 for "
                f"levels of this monitor: {', '.join(levels)}."
            )
