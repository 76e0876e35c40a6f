"""Small charts as inline SVG: one score against the merge ratio, by rank, or against accuracy.

Coordinates are SVG user units; a panel is drawn `WIDTH` units wide and scales with its column.
Colours live in the page's style sheet, so that every chart follows the light and dark schemes;
shape, filling and dashes carry the same information as colour. `data-c` holds a candidate's
position in the ranking and links the same candidate across charts and tables.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup

WIDTH = 340
HEIGHT = 184
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 24
LABELLED_ROWS = 40
"""Dot plots of at most this many candidates name every row; longer ones number every tenth."""

_SHAPES = (
    ((-3.2, 0), "a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0 -6.4 0z"),
    ((-2.9, -2.9), "h5.8v5.8h-5.8z"),
    ((0, -3.8), "l3.7 6.4h-7.4z"),
    ((0, 3.8), "l3.7 -6.4h-7.4z"),
    ((-3.6, 0), "l3.6 -3.6l3.6 3.6l-3.6 3.6z"),
)
_SMALL = "a1.7 1.7 0 1 0 3.4 0a1.7 1.7 0 1 0 -3.4 0z"
N_STYLES = len(_SHAPES)


class Dot(NamedTuple):
    """One candidate in one chart."""

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


def spread(marks: Iterable[Dot], *, horizontal: bool = False) -> list[float]:
    """All values a scale must cover: the scores and the ends of their intervals."""
    values: list[float] = []
    for mark in marks:
        values.append(mark.x if horizontal else mark.y)
        values += [end for end in (mark.low, mark.high) if end is not None]
    return values


def _svg(height: float, label: str, parts: Iterable[Markup], kind: str = "") -> Markup:
    return Markup(
        '<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}" focusable="false">{}</svg>'
    ).format(kind, WIDTH, round(height), label, Markup("").join(parts))


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup(f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')


def _words(kind: str, x: float, y: float, text: str, anchor: str = "middle") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, text
    )


def _grid_y(scale: Axis, bottom: float) -> list[Markup]:
    parts = []
    for tick in scale.ticks:
        y = scale.place(tick, bottom, TOP)
        parts.append(_line("grid", LEFT, y, WIDTH - RIGHT, y))
        parts.append(_words("tick", LEFT - 6, y + 3.5, scale.text(tick), "end"))
    return parts


def _grid_x(scale: Axis, bottom: float, *, lines: bool) -> list[Markup]:
    parts = [_line("axis", LEFT, bottom, WIDTH - RIGHT, bottom)]
    for tick in scale.ticks:
        x = scale.place(tick, LEFT, WIDTH - RIGHT)
        parts.append(_line("grid" if lines else "axis", x, TOP if lines else bottom, x, bottom + 3))
        parts.append(_words("tick", x, bottom + 15, scale.text(tick)))
    return parts


def _shape(series: int, x: float, y: float) -> Markup:
    (dx, dy), path = _SHAPES[series % N_STYLES]
    return Markup(f"M{x + dx:.1f} {y + dy:.1f}{path}")


def _dot(mark: Dot, x: float, y: float, *, small: bool = False) -> Markup:
    shape = _shape(mark.series, x, y)
    if small:
        shape = Markup(f"M{x - 1.7:.1f} {y:.1f}{_SMALL}")
    return Markup(
        '<g class="pt s{}{}" data-c="{}"><title>{}</title>'
        '<circle class="hit" cx="{:.1f}" cy="{:.1f}" r="{}"/><path class="dot" d="{}"/></g>'
    ).format(mark.series % N_STYLES, " tied" if mark.tied else "", mark.index, mark.label, x, y,
             3 if small else 8, shape)  # fmt: skip


def _ring(x: float, y: float) -> Markup:
    return Markup(f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="6.8"/>')


def _truth(x: float, y: float) -> Markup:
    shape = f"M{x - 9:.1f} {y:.1f}l9 -9l9 9l-9 9z"
    return Markup(f'<path class="truth" d="{shape}"/>')


def _band(line: Sequence[tuple[float, float | None, float | None]], series: int) -> Markup:
    """The interval band of one line, broken where an interval is missing."""
    parts: list[Markup] = []
    run: list[tuple[float, float, float]] = []
    for x, low, high in [*line, (0.0, None, None)]:
        if low is not None and high is not None:
            run.append((x, low, high))
            continue
        if len(run) == 1:
            parts.append(_line(f"whisker s{series}", run[0][0], run[0][1], run[0][0], run[0][2]))
        elif run:
            path = " ".join(f"{x:.1f},{high:.1f}" for x, _, high in run)
            back = " ".join(f"{x:.1f},{low:.1f}" for x, low, _ in reversed(run))
            parts.append(Markup(f'<polygon class="band s{series}" points="{path} {back}"/>'))
        run = []
    return Markup("").join(parts)


def ratio_panel(
    marks: Sequence[Dot],
    x_scale: Axis,
    *,
    label: str,
    favourite: int | None,
    most_accurate: int | None,
) -> Markup:
    """One score (y) against the merge ratio (x): a line and an interval band per series.

    A candidate that belongs to several lines is given once per line. `favourite` is ringed; a
    dashed line and a diamond mark `most_accurate`.
    """
    y_scale = axis(spread(marks))
    bottom = HEIGHT - BOTTOM

    def across(value: float) -> float:
        return x_scale.place(value, LEFT, WIDTH - RIGHT)

    def up(value: float) -> float:
        return y_scale.place(value, bottom, TOP)

    parts = [*_grid_y(y_scale, bottom), *_grid_x(x_scale, bottom, lines=False)]
    for mark in marks:
        if mark.index == most_accurate:
            parts.append(_line("best-line", across(mark.x), TOP, across(mark.x), bottom))
            parts.append(_truth(across(mark.x), up(mark.y)))
            break
    for series in sorted({mark.series for mark in marks}):
        line = sorted((m for m in marks if m.series == series), key=lambda m: (m.x, m.index))
        ends = [
            (
                across(m.x),
                None if m.low is None else up(m.low),
                None if m.high is None else up(m.high),
            )
            for m in line
        ]
        style = series % N_STYLES
        parts.append(_band(ends, style))
        path = " ".join(f"{across(m.x):.1f},{up(m.y):.1f}" for m in line)
        parts.append(Markup(f'<polyline class="line s{style}" points="{path}"/>'))
    parts += [_dot(m, across(m.x), up(m.y)) for m in marks]
    parts += [_ring(across(m.x), up(m.y)) for m in marks if m.index == favourite][:1]
    return _svg(HEIGHT, label, parts)


def rank_panel(
    marks: Sequence[Dot],
    names: Sequence[str],
    *,
    label: str,
    favourite: int | None,
    most_accurate: int | None,
) -> Markup:
    """One score (x) of candidates without a ratio, one row per candidate, best on top.

    `mark.y` is the row; `names` holds one label per row of the shared axis.
    """
    n_rows = len(names)
    pitch = max(3.4, min(17.0, 640 / max(n_rows, 1)))
    bottom = TOP + pitch * n_rows + 4
    named = n_rows <= LABELLED_ROWS
    left = 118 if named else LEFT
    scale = axis(spread(marks, horizontal=True), ticks=3 if named else 4)

    def across(value: float) -> float:
        return scale.place(value, left, WIDTH - RIGHT)

    def down(row: float) -> float:
        return TOP + pitch * (row + 0.5)

    parts: list[Markup] = []
    for tick in scale.ticks:
        parts.append(_line("grid", across(tick), TOP, across(tick), bottom))
        parts.append(_words("tick", across(tick), bottom + 15, scale.text(tick)))
    parts.append(_line("axis", left, bottom, WIDTH - RIGHT, bottom))
    for row, name in enumerate(names):
        if named:
            short = name if len(name) <= 18 else name[:7] + "\N{HORIZONTAL ELLIPSIS}" + name[-10:]
            parts.append(_line("grid", left, down(row), WIDTH - RIGHT, down(row)))
            parts.append(_words("tick", left - 8, down(row) + 3.5, short, "end"))
        elif (row + 1) % 10 == 0 or row == 0:
            parts.append(_words("tick", left - 8, down(row) + 3.5, str(row + 1), "end"))
    for mark in marks:
        y = down(mark.y)
        if mark.low is not None and mark.high is not None:
            style = mark.series % N_STYLES
            parts.append(_line(f"whisker s{style}", across(mark.low), y, across(mark.high), y))
        if mark.index == most_accurate:
            parts.append(_truth(across(mark.x), y))
    parts += [_dot(m, across(m.x), down(m.y), small=not named) for m in marks]
    parts += [_ring(across(m.x), down(m.y)) for m in marks if m.index == favourite][:1]
    return _svg(bottom + BOTTOM, label, parts, "" if named else "dense")


def scatter_panel(marks: Sequence[Dot], *, label: str, favourite: int | None) -> Markup:
    """Accuracy in % (y) against one score (x); Regret@1 is drawn as the drop from the best.

    The dashed line is the highest accuracy; the vertical stroke from the ringed favourite up to
    it is what picking by this score loses.
    """
    x_scale = axis(m.x for m in marks)
    y_scale = axis(m.y for m in marks)
    bottom = HEIGHT - BOTTOM

    def across(value: float) -> float:
        return x_scale.place(value, LEFT, WIDTH - RIGHT)

    def up(value: float) -> float:
        return y_scale.place(value, bottom, TOP)

    parts = [*_grid_y(y_scale, bottom), *_grid_x(x_scale, bottom, lines=False)]
    if marks:
        best = max(m.y for m in marks)
        parts.append(_line("best-line", LEFT, up(best), WIDTH - RIGHT, up(best)))
        for mark in marks:
            if mark.index == favourite and up(mark.y) - up(best) > 1:
                x = across(mark.x)
                parts.append(_line("regret", x, up(best), x, up(mark.y)))
    parts += [_dot(m, across(m.x), up(m.y)) for m in marks]
    parts += [_ring(across(m.x), up(m.y)) for m in marks if m.index == favourite][:1]
    return _svg(HEIGHT, label, parts)


def swatch(series: int) -> Markup:
    """A legend entry: the line and mark of one series."""
    style = series % N_STYLES
    return Markup(
        f'<svg class="swatch" viewBox="0 0 30 14" aria-hidden="true" focusable="false">'
        f'<line class="line s{style}" x1="1" y1="7" x2="29" y2="7"/>'
        f'<g class="pt s{style} tied"><path class="dot" d="{_shape(style, 15, 7)}"/></g></svg>'
    )
