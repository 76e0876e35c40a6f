"""One response, read closely: signals per row above the text, and the text banded by phase.

`trace_view` is what the template `trace.html.j2` shows of the NEX reading of one response.
Shapes: `R` rows of a response, `T` its tokens.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from surgeon.report.figures import Axis, axis
from surgeon.report.words import grouped, signed

ROWS_SHOWN = (1600, 400)
"""At most this many rows of text are shown, from the start and from the end of a response."""
CHARACTERS_SHOWN = (240_000, 60_000)
"""And at most this many characters of each part."""
ROW_CHARACTERS = 5_000
POINTS_DRAWN = 4_000
"""Tracks with more rows than this are drawn as means over neighbouring rows."""
DOTTED = 160
"""Curves of at most this many points have a dot at each."""
LETTERED = 0.03
"""Bands of at least this share of the rows carry their letter."""
CLIP = 8.0
"""Larger magnitudes of z are drawn at this value."""


class TraceReading(NamedTuple):
    """One response with the novelty and the phases that NEX reads in it."""

    candidate: str
    prompt_id: str
    sample: int
    prompt: str
    tokens: Sequence[str]
    """The text that each token adds."""
    row_tokens: int
    slope_R: Sequence[float]
    z_R: Sequence[float]
    explore_R: Sequence[bool]
    cycles: int
    score: float
    """The response's Good-Mass Fraction."""
    finish_reason: str


class Band(NamedTuple):
    """Rows `start` to `end` (exclusive) that belong together."""

    start: int
    end: int
    kind: str
    """Style: "e" (high, amber), "x" (low, blue) or "n" (none)."""
    letter: str
    what: str
    """What the band is, in words."""


class Plot(NamedTuple):
    """A signal above the text, in a box of one unit a row and 100 units of height."""

    name: str
    unit: str
    points: list[tuple[str, str]]
    """(across, down)"""
    rules: list[tuple[str, str]]
    """(down, label) of the lines across."""
    zero: str
    """Where the line at zero is; empty where there is none."""
    dotted: bool


class TextRow(NamedTuple):
    """A row of the response's text, or a stretch that is left out."""

    index: int
    """-1 for what is left out."""
    kind: str
    title: str
    number: str
    """What stands before it in the margin."""
    before: str
    """Line breaks, which come before the number."""
    words: str


class TraceView(NamedTuple):
    """What `trace.html.j2` shows of a reading."""

    facts: list[tuple[str, str]]
    prompt: str
    n_rows: int
    size: str
    """Of a row, in words."""
    plots: list[Plot]
    bands: list[Band]
    letters: list[tuple[Band, str]]
    """The bands that are wide enough for their letter, and where it stands."""
    ticks: list[tuple[str, str]]
    """(across, label) of the rows' axis."""
    rows: list[TextRow]


def trace_view(reading: TraceReading) -> TraceView:
    """The response cut into rows, its curves and bands, and its text."""
    size = max(1, reading.row_tokens)
    texts = [
        "".join(reading.tokens[start : start + size])
        for start in range(0, len(reading.tokens), size)
    ]
    n_rows = len(texts)
    spans = bands(reading.explore_R, n_rows)
    return TraceView(
        facts=_facts(reading, spans, n_rows),
        prompt=cut(reading.prompt, CHARACTERS_SHOWN[1], "the prompt"),
        n_rows=n_rows,
        size="1 token each" if size == 1 else f"{size} tokens each",
        plots=_plots(reading, n_rows),
        bands=spans,
        letters=[
            (band, share((band.start + band.end) / 2, n_rows))
            for band in spans
            if band.letter and band.end - band.start >= LETTERED * n_rows
        ],
        ticks=[(share(tick - 0.5, n_rows), f"{tick:,.0f}") for tick in _row_ticks(n_rows)],
        rows=_text_rows(reading, texts, spans),
    )


def _facts(reading: TraceReading, spans: Sequence[Band], n_rows: int) -> list[tuple[str, str]]:
    cut_off = reading.finish_reason == "length"
    return [
        ("candidate", reading.candidate),
        ("prompt", f"{reading.prompt_id}, sample {reading.sample}"),
        ("length", f"{grouped(len(reading.tokens))} tokens in {grouped(n_rows)} rows"),
        ("ended", "cut at the token limit" if cut_off else "by itself"),
        ("rows in phase E", grouped(sum(b.end - b.start for b in spans if b.kind == "e"))),
        ("cycles", grouped(reading.cycles)),
        ("response score", signed(reading.score, 4)),
    ]


def _plots(reading: TraceReading, n_rows: int) -> list[Plot]:
    """Novelty and its z-score, where the response has them."""
    slope_R, z_R = reading.slope_R[:n_rows], reading.z_R[:n_rows]
    clipped = any(abs(z) > CLIP for z in z_R)
    note = f", drawn cut at \N{PLUS-MINUS SIGN}{CLIP:g}" if clipped else ""
    plots = []
    if slope_R:
        points = [(x, math.log1p(max(s, 0.0))) for x, s in _thin(slope_R)]
        plots.append(_plot("novelty s", "new neurons per token (log scale)", points, log=True))
    if z_R:
        points = [(x, min(max(z, -CLIP), CLIP)) for x, z in _thin(z_R)]
        unit = f"novelty against its own trend, in robust deviations{note}"
        plots.append(_plot("z", unit, points, log=False))
    return plots


def bands(explore_R: Sequence[bool], n_rows: int) -> list[Band]:
    """Runs of equal phase over `n_rows` rows; rows without a phase form bands of kind "n"."""
    kinds = ["e" if explore else "x" for explore in explore_R[:n_rows]]
    kinds += ["n"] * (n_rows - len(kinds))
    names = {"e": ("E", "exploring"), "x": ("X", "exploiting"), "n": ("", "no phase")}
    runs: list[Band] = []
    for row, kind in enumerate(kinds):
        if runs and runs[-1].kind == kind:
            runs[-1] = runs[-1]._replace(end=row + 1)
        else:
            runs.append(Band(row, row + 1, kind, *names[kind]))
    return runs


# ---------------------------------------------------------------- curves


def share(position: float, whole: float) -> str:
    """A place across a chart, in percent."""
    return f"{100 * position / max(whole, 1):.3f}"


def _row_ticks(n_rows: int) -> list[float]:
    """The rows that the axis names."""
    if n_rows <= 8:
        return list(range(1, n_rows + 1))
    ticks = axis([1, n_rows], ticks=8, pad=0).ticks
    return [tick for tick in ticks if 1 <= tick <= n_rows and tick == int(tick)]


def _plot(name: str, unit: str, points: list[tuple[float, float]], *, log: bool) -> Plot:
    """The points on a scale of their own: of log(1 + value), or of the value, with a zero line."""
    scale = axis([v for _, v in points], ticks=3)
    rules = [(tick, scale.text(tick)) for tick in scale.ticks]
    if log:
        rules = [(math.log1p(v), f"{v:g}") for v in _log_ticks(scale)]
    return Plot(
        name,
        unit,
        points=[(f"{x:g}", _down(scale, v)) for x, v in points],
        rules=[(_down(scale, at), label) for at, label in rules],
        zero=_down(scale, 0.0) if not log and scale.low < 0 < scale.high else "",
        dotted=len(points) <= DOTTED,
    )


def _down(scale: Axis, value: float) -> str:
    """A place down a curve's box."""
    return f"{scale.place(value, 100, 0):.2f}"


def _thin(value_R: Sequence[float]) -> list[tuple[float, float]]:
    """(position, value) of the rows to draw; means of neighbours when there are too many."""
    size = math.ceil(len(value_R) / POINTS_DRAWN) or 1
    points = []
    for start in range(0, len(value_R), size):
        near = value_R[start : start + size]
        points.append((start + len(near) / 2, sum(near) / len(near)))
    return points


def _log_ticks(scale: Axis) -> list[float]:
    """Values at round numbers, at least a fifth of the scale apart."""
    ticks: list[float] = []
    every = [0.0, *(digit * 10.0**power for power in range(-2, 7) for digit in (1, 2, 5))]
    for value in every:
        height = math.log1p(value)
        if scale.low <= height <= scale.high and (
            not ticks or height - math.log1p(ticks[-1]) >= 0.2 * (scale.high - scale.low)
        ):
            ticks.append(value)
    return ticks


# ---------------------------------------------------------------- text


def cut(text: str, most: int, what: str) -> str:
    """The text, or its first characters and a word that the rest of `what` isn't shown."""
    return text if len(text) <= most else f"{text[:most]} [the rest of {what} is not shown]"


def _text_rows(reading: TraceReading, texts: Sequence[str], spans: Sequence[Band]) -> list[TextRow]:
    """The response's text, row by row, banded like the curves.

    The beginning and the end are shown when the whole is too long, with a line saying so.
    """
    of_row = [band for band in spans for _ in range(band.start, band.end)]
    rows: list[TextRow] = []
    previous = -1
    for row in [*shown_rows(texts), len(texts)]:
        skipped = row != previous + 1
        if skipped:
            rows.append(TextRow(-1, "", "", "", "", omitted(previous + 1, row, len(texts))))
        if row == len(texts):
            break
        band, words = of_row[row], cut(texts[row], ROW_CHARACTERS, "this row")
        number = f"{row + 1}"
        if band.letter and (row == band.start or skipped):
            number = f"{band.letter}\N{NO-BREAK SPACE}{number}"
        # The number stands where the row's words begin, not at the end of the line before.
        begin = len(words) - len(words.lstrip("\n")) if words.strip("\n") else 0
        title = f"row {row + 1}, {band.what}: s = {_value(reading.slope_R, row)}, z = "
        rows.append(
            TextRow(
                row, band.kind, title + _value(reading.z_R, row), number, words[:begin],
                words[begin:],
            )
        )  # fmt: skip
        previous = row
    return rows


def _value(value_R: Sequence[float], row: int) -> str:
    return signed(value_R[row] if row < len(value_R) else None, 2)


def shown_rows(rows: Sequence[str]) -> list[int]:
    """Indices of the rows whose text is shown, within the limits at the head of this file."""

    def fitting(order: Sequence[int], most: int, characters: int) -> list[int]:
        fits: list[int] = []
        for row in order[:most]:
            characters -= min(len(rows[row]), ROW_CHARACTERS)
            if characters < 0:
                break
            fits.append(row)
        return fits

    head = fitting(range(len(rows)), ROWS_SHOWN[0], CHARACTERS_SHOWN[0])
    rest = range(len(rows) - 1, len(head) - 1, -1)
    return head + sorted(fitting(rest, ROWS_SHOWN[1], CHARACTERS_SHOWN[1]))


def omitted(start: int, end: int, n_rows: int) -> str:
    """What is said in the place of rows `start` to `end` (exclusive)."""
    what = f"Row {end}" if end == start + 1 else f"Rows {start + 1:,} to {end:,}"
    verb = "is" if end == start + 1 else "are"
    return f"{what} of {n_rows:,} {verb} not shown, to keep this file small."
