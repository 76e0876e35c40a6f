"""What a monitored trace did, over one axis of tokens: heat maps of channels, detectors' curves.

`MonitoredView` is the trace as far as a page can show it; flags, heat maps, curves and text all
stand on its rows.
"""

# Shapes: T tokens of the response, R rows of `size` neighbouring tokens, C channels.

import base64
import struct
import zlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from surgeon.neureasoner.steps import Step
from surgeon.report.figures import Axis, axis
from surgeon.report.reading import share
from surgeon.report.words import signed, times
from surgeon.watch.replay import Replay, ReplayFiring, ReplayLevel, ReplayReading

LEVELS = {
    "intra": "a wrong step",
    "inter": "stagnation between steps",
    "instance": "an easy question, thought about for too long",
    "enough": "thinking that holds its answer",
}
"""Failure levels and what they are, in the order they are drawn."""
MOST_ROWS = 1200
"""Longer responses are drawn in rows of several tokens: no window is wide enough for more."""
NAMED_CHANNELS = 16
"""Heat maps of at most this many channels name each of them."""
MANY_READINGS = 150
"""More readings of a level than this are drawn as smaller dots."""
SHADES = 16
LIGHT = ((0xFB, 0xFA, 0xF6), (0x8F, 0x9C, 0xA0), (0x16, 0x26, 0x30))
DARK = ((0x14, 0x16, 0x1A), (0x5C, 0x6E, 0x76), (0xF2, 0xF0, 0xE8))
"""Silent, half and loud in a heat map, by colour scheme."""
SCALE = Axis(-0.04, 1.04, (0.0, 0.5, 1.0), 0.5)
"""Of probabilities."""


class MonitoredView(NamedTuple):
    """The trace, cut to what a page can show."""

    tokens: list[str]
    size: int
    n_rows: int
    steps: list[Step]
    levels: dict[str, ReplayLevel]
    readings: list[ReplayReading]
    firings: list[ReplayFiring]
    step_T: np.ndarray
    """Number of each token's step, or -1."""
    firing_T: np.ndarray
    """Number of the firing that forced the token, or -1."""
    probability_R: dict[str, list[float | None]]
    """By level: means over each row's tokens."""

    @property
    def width(self) -> int:
        """Units across a chart: tokens, with the last row filled up."""
        return self.n_rows * self.size

    def left(self, token: float) -> str:
        """A place across the charts, in percent."""
        return share(token, self.width)

    def fires(self, reading: ReplayReading) -> bool:
        """The reading is at or above its threshold."""
        return reading.probability >= self.levels[reading.level].threshold


def view_of(replay: Replay) -> MonitoredView:
    """What the page shows of a replay."""
    T = len(replay.tokens)
    size = -(-T // MOST_ROWS) or 1
    levels = {level: replay.levels[level] for level in LEVELS if level in replay.levels}
    step_T, firing_T = np.full((2, T), -1)
    for s, (start, end) in enumerate(replay.steps):
        step_T[start:end] = s
    for n, firing in enumerate(replay.firings):
        firing_T[firing.position : firing.end] = n
    probability_R = {
        level: [_mean(row.probability_T[at : at + size]) for at in range(0, T, size)]
        for level, row in levels.items()
    }
    return MonitoredView(
        replay.tokens, size, -(-T // size), replay.steps, levels, replay.readings, replay.firings,
        step_T, firing_T, probability_R,
    )  # fmt: skip


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def labels(view: MonitoredView) -> list[tuple[str, str]]:
    """(place, number) of some tokens."""
    n = len(view.tokens)
    ticks = range(1, n + 1) if n <= 8 else axis([1, n], ticks=8, pad=0).ticks
    whole = [tick for tick in ticks if tick == int(tick) and 1 <= tick <= n]
    return [(view.left(tick - 0.5), f"{tick:,.0f}") for tick in whole]


def lanes(view: MonitoredView, apart: float) -> list[int]:
    """The lane of each firing's flag: those less than that share of the chart's width apart would
    overlap, and stand above each other."""
    ends: list[float] = []
    rows = []
    for firing in view.firings:
        left = firing.start / view.width
        lane = next((i for i, end in enumerate(ends) if left - end >= apart), len(ends))
        ends[lane : lane + 1] = [left]
        rows.append(lane)
    return rows


class DetectorCurve(NamedTuple):
    """A detector's probability, its threshold, and the readings at step ends."""

    grid: list[str]
    ticks: list[tuple[str, str]]
    threshold: tuple[str, str]
    lines: list[str]
    dots: tuple[str, str]
    """Paths of the readings below the threshold, and of those from it up."""
    many: bool


class LevelTrack(NamedTuple):
    """A level's channels as a heat map, above its detector's curve."""

    level: str
    what: str
    images: list[str]
    """For the light and the dark scheme."""
    height: str
    names: list[tuple[str, str]]
    between: str
    """Where the units end and the heads begin, if it has both."""
    curve: DetectorCurve


def tracks(view: MonitoredView, replay: Replay) -> Iterator[LevelTrack]:
    """For each level its channels' heat map and its detector's curve."""
    x_TC = np.asarray(replay.activation_TC, float).reshape(len(view.tokens), -1)
    names = [f"unit {unit}" for unit in replay.units] + [f"head {head}" for head in replay.heads]
    for level, row in view.levels.items():
        channels = [names[c] for c in row.columns]
        units = sum(name.startswith("unit") for name in channels)
        runs = [(first, n, kind) for first, n, kind in
                ((0, units, "unit"), (units, len(channels) - units, "head")) if n]  # fmt: skip
        ticks = [(first, first + n, times(n, kind)) for first, n, kind in runs]
        window = times(row.window, "step")
        listed = " and ".join(words for *_, words in ticks)
        n = len(channels)
        if n <= NAMED_CHANNELS:
            ticks = [(c, c + 1, name) for c, name in enumerate(channels)]
        span = "first" if level == "instance" else "last"
        yield LevelTrack(
            level,
            what=f"{LEVELS[level]}; {listed}, read over the {span} {window}",
            images=_heat(x_TC[:, row.columns], view.size),
            height=f"{0.8 * n if n <= NAMED_CHANNELS else min(11, max(6, 0.16 * n)):.2f}",
            names=[(share((first + last) / 2, n), words) for first, last, words in ticks],
            between=share(units, n) if 0 < units < n else "",
            curve=_curve(level, view),
        )


def _heat(x_TC: np.ndarray, size: int) -> list[str]:
    """Two images, for the light and the dark scheme: channels down, rows across.

    A row shows its largest activation; a channel reaches from the 1st to the 99th percentile.
    """
    x_RC = np.maximum.reduceat(np.nan_to_num(x_TC), range(0, len(x_TC), size), axis=0)
    low_C, high_C = np.quantile(x_RC, (0.01, 0.99), axis=0)
    share_RC = np.clip((x_RC - low_C) / np.where(high_C > low_C, high_C - low_C, 1), 0, 1)
    shade_CR = np.rint(np.sqrt(share_RC.T) * (SHADES - 1)).astype(np.uint8)
    at = np.linspace(0, 2, SHADES)
    return [
        _png(shade_CR, np.stack([np.interp(at, range(3), part) for part in np.transpose(ramp)], 1))
        for ramp in (LIGHT, DARK)
    ]


def _png(shade_CR: np.ndarray, palette: np.ndarray) -> str:
    """An image as a data URL: four bits a pixel, line after line."""
    height, width = shade_CR.shape
    even = np.pad(shade_CR, ((0, 0), (0, width % 2)))
    lines = np.pad((even[:, ::2] << 4) | even[:, 1::2], ((0, 0), (1, 0)))

    def chunk(kind: bytes, body: bytes) -> bytes:
        summed = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + summed

    image = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 4, 3, 0, 0, 0))
        + chunk(b"PLTE", np.rint(palette).astype(np.uint8).tobytes())
        + chunk(b"IDAT", zlib.compress(lines.tobytes(), 9))
        + chunk(b"IEND", b"")
    )
    return "data:image/png;base64," + base64.b64encode(image).decode()


def down(probability: float) -> float:
    """A place down a curve's chart, in percent."""
    return SCALE.place(min(max(probability, 0.0), 1.0), 100, 0)


def _curve(level: str, view: MonitoredView) -> DetectorCurve:
    threshold = view.levels[level].threshold
    lines = []
    for known, run in groupby(enumerate(view.probability_R[level]), lambda at: at[1] is not None):
        if known:
            points = [f"{(r + 0.5) * view.size:g},{down(p or 0.0):.1f}" for r, p in run]
            # A line needs two ends.
            lines.append(" ".join(points if len(points) > 1 else points * 2))
    mine = [reading for reading in view.readings if reading.level == level]
    ticks = [(tick, SCALE.text(tick)) for tick in SCALE.ticks if abs(tick - threshold) > 0.17]
    below, above = (
        "".join(
            f"M{reading.position - 0.5:g} {down(reading.probability):.1f}h0"
            for reading in mine
            if view.fires(reading) is over
        )
        for over in (False, True)
    )
    return DetectorCurve(
        grid=[f"{down(tick):.2f}" for tick in SCALE.ticks],
        ticks=[(f"{down(value):.2f}", words) for value, words in ticks],
        threshold=(f"{down(threshold):.2f}", signed(threshold, 2)),
        lines=lines,
        dots=(below, above),
        many=len(mine) > MANY_READINGS,
    )
