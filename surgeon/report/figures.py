"""Small charts, placed: one score against the merge ratio, by rank, or against accuracy.

Coordinates are SVG user units; a chart is `WIDTH` units wide and scales with its column. What is
computed here, the template figures.html.j2 draws.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from statistics import median
from typing import NamedTuple

WIDTH = 340
HEIGHT = 184
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 24
LABELLED_ROWS = 40
"""Dot plots of at most this many candidates name every row; longer ones number every tenth."""
ROOM = 1
"""An interval's end further from the scores than so many times their range (or the median interval,
where that is longer) is cut: one that reaches a score's limit would leave the others no room."""
LONGEST_NAME = 18
"""Characters of a candidate's name beside its row."""

Line = tuple[str, float, float, float, float]
"""(style, x1, y1, x2, y2)"""
Tick = tuple[float, float, str, str]
"""(x, y, anchor, text)"""


class Dot(NamedTuple):
    """One candidate in one chart: in the values' units, and then where it is drawn."""

    index: int
    """Position in the ranking, best = 0."""
    x: float
    y: float
    low: float | None
    high: float | None
    """Ends of the 95% interval of the score, or None."""
    label: str
    """Name and value in words: the tooltip."""
    tied: bool
    """Whether it is the best candidate or can't be told apart from it: drawn filled."""
    series: int = 0
    """Which line it belongs to: a family's merge method."""


class Curve(NamedTuple):
    """A line through one series' dots."""

    series: int
    points: str
    bands: list[str]
    """Polygons of the intervals, where neighbours have one."""


class Chart(NamedTuple):
    """What is drawn, in order."""

    label: str
    height: float
    lines: list[Line]
    ticks: list[Tick]
    dots: list[Dot]
    favourite: int | None
    """Index of the dot that gets a ring."""
    truth: Dot | None = None
    """The most accurate candidate."""
    curves: Sequence[Curve] = ()
    dense: bool = False
    """Small dots."""

    @property
    def ring(self) -> Dot | None:
        return next((dot for dot in self.dots if dot.index == self.favourite), None)


class Axis(NamedTuple):
    """A linear scale with round ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]
    step: float

    def place(self, value: float, start: float, end: float) -> float:
        """The coordinate of `value` when the scale runs from `start` to `end`."""
        return start + (value - self.low) / (self.high - self.low) * (end - start)

    def text(self, tick: float) -> str:
        """A tick's label, with as many decimals as the step needs."""
        if self.step >= 1:
            if abs(tick) >= 1e6:
                return f"{tick:.3g}".replace("e+0", "e").replace("e+", "e")
            return f"{tick:,.0f}".replace("-", "\N{MINUS SIGN}")
        decimals = -math.floor(math.log10(self.step) + 1e-9)
        if decimals > 6:
            return f"{tick:.2g}"
        return f"{tick:.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def axis(values: Iterable[float], *, ticks: int = 4, pad: float = 0.08) -> Axis:
    """A scale over finite `values` with about `ticks` round ticks; 0 to 1 when there are none."""
    known = list(values)
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if high - low <= 1e-12 * max(1.0, abs(high)):
        room = abs(high) * 0.05 or 0.5
        low, high = low - room, high + room
    else:
        low, high = low - pad * (high - low), high + pad * (high - low)
    rough = (high - low) / ticks
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((s * power for s in (1, 2, 5, 10)), key=lambda s: abs(math.log(s / rough)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Axis(low, high, tuple(k * step for k in range(first, last + 1)), step)


def spread(values: Iterable[float], dots: Iterable[Dot]) -> list[float]:
    """All values a scale must cover: the scores, and the ends of their intervals as far as they
    leave the scores room; ends beyond are cut, and arrows say so."""
    known, dots = list(values), list(dots)
    ends = [end for dot in dots for end in (dot.low, dot.high) if end is not None]
    if not known or not ends:
        return [*known, *ends]
    lengths = [d.high - d.low for d in dots if d.low is not None and d.high is not None]
    low, high = min(known), max(known)
    room = ROOM * max(high - low, median(lengths) if lengths else 0.0)
    return [*known, *(min(max(end, low - room), high + room) for end in ends)]


def _place(dot: Dot, x: float, y: float, scale: Axis, end: Callable[[float], float]) -> Dot:
    """The dot where it is drawn; `end` places its interval's ends, cut where the scale ends."""
    low, high = (
        None if value is None else end(min(max(value, scale.low), scale.high))
        for value in (dot.low, dot.high)
    )
    return dot._replace(x=x, y=y, low=low, high=high)


def _arrows(dots: Iterable[Dot], placed: Iterable[Dot], scale: Axis, *, flat: bool) -> list[Tick]:
    """An arrow at each end of an interval that lies outside the scale."""
    found: list[Tick] = []
    for dot, there in zip(dots, placed, strict=True):
        for value, at, beyond, signs in (
            (dot.low, there.low, -1, "\N{LEFTWARDS ARROW}\N{DOWNWARDS ARROW}"),
            (dot.high, there.high, 1, "\N{RIGHTWARDS ARROW}\N{UPWARDS ARROW}"),
        ):
            outside = value is not None and not scale.low <= value <= scale.high
            if outside and at is not None:
                place = (at - 3 * beyond, there.y + 3.5) if flat else (there.x, at + 4)
                found.append((*place, "middle", signs[0] if flat else signs[1]))
    return found


def _across(scale: Axis, value: float, left: float = LEFT) -> float:
    return scale.place(value, left, WIDTH - RIGHT)


def _up(scale: Axis, value: float) -> float:
    return scale.place(value, HEIGHT - BOTTOM, TOP)


def _frame(x_scale: Axis, y_scale: Axis) -> tuple[list[Line], list[Tick]]:
    """Grid, axis and ticks."""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    lines: list[Line] = []
    ticks: list[Tick] = []
    for tick in y_scale.ticks:
        y = _up(y_scale, tick)
        lines.append(("grid", LEFT, y, right, y))
        ticks.append((LEFT - 6, y + 3.5, "end", y_scale.text(tick)))
    lines.append(("axis", LEFT, bottom, right, bottom))
    for tick in x_scale.ticks:
        x = _across(x_scale, tick)
        lines.append(("axis", x, bottom, x, bottom + 3))
        ticks.append((x, bottom + 15, "middle", x_scale.text(tick)))
    return lines, ticks


def _whisker(dot: Dot, low: float, high: float, *, flat: bool) -> Line:
    """A dot's interval as a line, across (`flat`) or upwards."""
    ends = (low, dot.y, high, dot.y) if flat else (dot.x, low, dot.x, high)
    return (f"whisker s{dot.series}", *ends)


def _curve(line: Sequence[Dot], lines: list[Line]) -> Curve:
    """The curve through placed dots; an interval without a neighbour's becomes one of `lines`."""
    bands = []
    for known, run in groupby(line, lambda dot: dot.low is not None and dot.high is not None):
        dots = list(run)
        if known and len(dots) == 1:
            lines.append(_whisker(dots[0], dots[0].low or 0.0, dots[0].high or 0.0, flat=False))
        elif known:
            upper = [f"{dot.x:.1f},{dot.high:.1f}" for dot in dots]
            lower = [f"{dot.x:.1f},{dot.low:.1f}" for dot in reversed(dots)]
            bands.append(" ".join(upper + lower))
    return Curve(line[0].series, " ".join(f"{dot.x:.1f},{dot.y:.1f}" for dot in line), bands)


def ratio_chart(
    dots: Sequence[Dot],
    x_scale: Axis,
    *,
    label: str,
    favourite: int | None,
    most_accurate: int | None,
) -> Chart:
    """One score (y) against the merge ratio (x): a line and an interval band per series.

    A candidate that belongs to several lines is given once per line. `favourite` is ringed; a
    dashed line and a diamond mark `most_accurate`.
    """
    y_scale = axis(spread((dot.y for dot in dots), dots))

    def up(value: float) -> float:
        return _up(y_scale, value)

    placed = [_place(dot, _across(x_scale, dot.x), up(dot.y), y_scale, up) for dot in dots]
    lines, ticks = _frame(x_scale, y_scale)
    ticks += _arrows(dots, placed, y_scale, flat=False)
    truth = next((dot for dot in placed if dot.index == most_accurate), None)
    if truth is not None:
        lines.append(("best-line", truth.x, TOP, truth.x, HEIGHT - BOTTOM))
    series = attrgetter("series")
    curves = [
        _curve(sorted(run, key=lambda dot: (dot.x, dot.index)), lines)
        for _, run in groupby(sorted(placed, key=series), series)
    ]
    return Chart(label, HEIGHT, lines, ticks, placed, favourite, truth, curves)


def rank_chart(
    dots: Sequence[Dot],
    names: Sequence[str],
    *,
    label: str,
    favourite: int | None,
    most_accurate: int | None,
) -> Chart:
    """One score (x) of candidates without a ratio, one row per candidate, best on top.

    `dot.y` is the row; `names` holds one label per row of the shared axis.
    """
    n_rows = len(names)
    pitch = max(3.4, min(17.0, 640 / max(n_rows, 1)))
    bottom, right = TOP + pitch * n_rows + 4, WIDTH - RIGHT
    named = n_rows <= LABELLED_ROWS
    left = 118 if named else LEFT
    scale = axis(spread((dot.x for dot in dots), dots), ticks=3 if named else 4)
    lines: list[Line] = []
    ticks: list[Tick] = []

    def across(value: float) -> float:
        return _across(scale, value, left)

    def down(row: float) -> float:
        return TOP + pitch * (row + 0.5)

    for tick in scale.ticks:
        lines.append(("grid", across(tick), TOP, across(tick), bottom))
        ticks.append((across(tick), bottom + 15, "middle", scale.text(tick)))
    lines.append(("axis", left, bottom, right, bottom))
    for row, name in enumerate(names):
        if named:
            short = name if len(name) <= LONGEST_NAME else f"{name[:7]}…{name[-10:]}"
            lines.append(("grid", left, down(row), right, down(row)))
            ticks.append((left - 8, down(row) + 3.5, "end", short))
        elif (row + 1) % 10 == 0 or row == 0:
            ticks.append((left - 8, down(row) + 3.5, "end", str(row + 1)))
    placed = [_place(dot, across(dot.x), down(dot.y), scale, across) for dot in dots]
    ticks += _arrows(dots, placed, scale, flat=True)
    lines += [
        _whisker(dot, dot.low, dot.high, flat=True)
        for dot in placed
        if dot.low is not None and dot.high is not None
    ]
    truth = next((dot for dot in placed if dot.index == most_accurate), None)
    return Chart(
        label, bottom + BOTTOM, lines, ticks, placed, favourite, truth, dense=not named
    )  # fmt: skip


def scatter_chart(dots: Sequence[Dot], *, label: str, favourite: int | None) -> Chart:
    """Accuracy in % (y) against one score (x); Regret@1 is drawn as the drop from the best.

    The dashed line is the highest accuracy; the vertical stroke from the ringed favourite up to
    it is what picking by this score loses.
    """
    x_scale, y_scale = axis(dot.x for dot in dots), axis(dot.y for dot in dots)
    lines, ticks = _frame(x_scale, y_scale)
    placed = [dot._replace(x=_across(x_scale, dot.x), y=_up(y_scale, dot.y)) for dot in dots]
    chart = Chart(label, HEIGHT, lines, ticks, placed, favourite)
    if placed:
        best, ring = min(dot.y for dot in placed), chart.ring
        lines.append(("best-line", LEFT, best, WIDTH - RIGHT, best))
        if ring is not None and ring.y - best > 1:
            lines.append(("regret", ring.x, best, ring.x, ring.y))
    return chart


def front_chart(dots: Sequence[Dot], front: Sequence[int], *, label: str) -> Chart:
    """A value (y) against its cost (x): the line joins the dots at the places `front`, those that
    no other beats in both, as steps."""
    x_scale = axis((dot.x for dot in dots), pad=0.05)
    y_scale = axis(spread((dot.y for dot in dots), dots))

    def up(value: float) -> float:
        return _up(y_scale, value)

    placed = [_place(dot, _across(x_scale, dot.x), up(dot.y), y_scale, up) for dot in dots]
    lines, ticks = _frame(x_scale, y_scale)
    ticks += _arrows(dots, placed, y_scale, flat=False)
    lines += [
        _whisker(dot, dot.low, dot.high, flat=False)
        for dot in placed
        if dot.low is not None and dot.high is not None
    ]
    # What is reached with so many tokens stays in reach with more.
    corners: list[tuple[float, float]] = []
    for n in front:
        corners += [(placed[n].x, corners[-1][1])] if corners else []
        corners.append((placed[n].x, placed[n].y))
    steps = [Curve(0, " ".join(f"{x:.1f},{y:.1f}" for x, y in corners), [])] if corners else []
    return Chart(label, HEIGHT, lines, ticks, placed, None, None, steps)
