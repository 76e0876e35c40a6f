"""One response, read closely: signals per row above the text, and the text banded by phase.

`phases` draws the NEX reading of one trace. `Track`, `Band`, `plots` and `text` know nothing of
NEX: another kind of reading brings its own tracks and bands.
Shapes: `R` rows of a response, `T` its tokens.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from surgeon.report.figures import axis
from surgeon.report.words import finite, grouped, integer, signed

ROWS_SHOWN = (1600, 400)
"""At most this many rows of text are shown, from the start and from the end of a response."""
CHARACTERS_SHOWN = (240_000, 60_000)
"""And at most this many characters of each part."""
ROW_CHARACTERS = 5_000
POINTS_DRAWN = 4_000
"""Tracks with more rows than this are drawn as means over neighbouring rows."""


class Track(NamedTuple):
    """A signal with one value per row, drawn above the text."""

    name: str
    unit: str
    value_R: Sequence[float | None]
    log: bool = False
    """Draw log(1 + value)."""
    zero: bool = False
    """Draw a line at zero."""
    clip: float | None = None
    """Draw larger magnitudes at this value."""


class Band(NamedTuple):
    """Rows `start` to `end` (exclusive) that belong together."""

    start: int
    end: int
    kind: str
    """Style: "e" (high, amber), "x" (low, blue) or "n" (none)."""
    letter: str
    what: str
    """What the band is, in words."""


def bands(explore_R: Sequence[bool], n_rows: int) -> list[Band]:
    """Runs of equal phase over `n_rows` rows; rows without a phase form bands of kind "n"."""
    kinds = ["e" if explore else "x" for explore in explore_R[:n_rows]]
    kinds += ["n"] * (n_rows - len(kinds))
    names = {"e": ("E", "exploring"), "x": ("X", "exploiting"), "n": ("", "no phase")}
    found: list[Band] = []
    for row, kind in enumerate(kinds):
        if found and found[-1].kind == kind:
            found[-1] = found[-1]._replace(end=row + 1)
        else:
            found.append(Band(row, row + 1, kind, *names[kind]))
    return found


def plots(tracks: Sequence[Track], spans: Sequence[Band], n_rows: int, row_tokens: int) -> Markup:
    """The tracks over a shared row axis, the bands shaded behind them and drawn as a step line.

    The drawing stretches with the page; ticks are text of the page, so they keep their size.
    """
    drawn = [_track(track, spans, n_rows) for track in tracks]
    ticks = [tick for tick in axis([1, max(n_rows, 2)], ticks=8, pad=0).ticks if tick >= 1]
    if n_rows <= 8:
        ticks = list(range(1, n_rows + 1))
    labels = Markup("").join(
        Markup('<span style="left:{}%">{}</span>').format(share(tick - 0.5, n_rows), f"{tick:,.0f}")
        for tick in ticks
        if tick == int(tick) and tick <= n_rows
    )
    return Markup(
        '<div class="strip" tabindex="0" role="slider" aria-label="Row of the response"'
        ' aria-valuemin="1" aria-valuemax="{n}" aria-valuenow="1" data-rows="{n}">'
        '<div class="area">{tracks}{phases}<div class="cursor" hidden></div></div>'
        '<div class="rows-axis" aria-hidden="true">{labels}</div>'
        '<p class="axis-name">row of the response ({size})</p></div>'
    ).format(
        n=n_rows,
        tracks=Markup("").join(drawn),
        phases=_steps(spans, n_rows),
        labels=labels,
        size="1 token each" if row_tokens == 1 else f"{row_tokens} tokens each",
    )


def share(position: float, whole: float) -> str:
    """A place across a chart, in percent."""
    return f"{100 * position / max(whole, 1):.3f}"


def _thin(value_R: Sequence[float | None]) -> list[tuple[float, float]]:
    """(position, value) of the rows to draw; means of neighbours when there are too many."""
    size = math.ceil(len(value_R) / POINTS_DRAWN) or 1
    points = []
    for start in range(0, len(value_R), size):
        known = [v for v in value_R[start : start + size] if v is not None]
        if known:
            points.append((start + min(size, len(value_R) - start) / 2, sum(known) / len(known)))
    return points


def _log_ticks(low: float, high: float) -> list[float]:
    """Values at round numbers, kept at least a fifth of the scale apart."""
    kept: list[float] = []
    every = [0.0, *(digit * 10.0**power for power in range(-2, 7) for digit in (1, 2, 5))]
    for value in every:
        height = math.log1p(value)
        if low <= height <= high and (
            not kept or height - math.log1p(kept[-1]) >= 0.2 * (high - low)
        ):
            kept.append(value)
    return kept


def _track(track: Track, spans: Sequence[Band], n_rows: int) -> Markup:
    points = _thin([finite(value) for value in track.value_R[:n_rows]])
    if track.clip is not None:
        clip = track.clip
        points = [(x, min(max(v, -clip), clip)) for x, v in points]
    if track.log:
        points = [(x, math.log1p(max(v, 0.0))) for x, v in points]
    scale = axis([v for _, v in points], ticks=3)
    if track.log:
        labels = [(math.log1p(v), f"{v:g}") for v in _log_ticks(scale.low, scale.high)]
    else:
        labels = [(tick, scale.text(tick)) for tick in scale.ticks]
    shades = Markup("").join(
        Markup('<rect class="shade {}" x="{}" y="0" width="{}" height="100"/>').format(
            band.kind, band.start, band.end - band.start
        )
        for band in spans
    )
    rules = [scale.place(at, 100, 0) for at, _ in labels]
    lines = Markup("").join(
        Markup(f'<line class="grid" x1="0" x2="{n_rows}" y1="{y:.2f}" y2="{y:.2f}"/>')
        for y in rules
    )
    if track.zero and scale.low < 0 < scale.high:
        y = scale.place(0, 100, 0)
        lines += Markup(f'<line class="zero" x1="0" x2="{n_rows}" y1="{y:.2f}" y2="{y:.2f}"/>')
    path = " ".join(f"{x:g},{scale.place(v, 100, 0):.2f}" for x, v in points)
    dots = Markup("")
    if len(points) <= 160:
        where = "".join(f"M{x:g} {scale.place(v, 100, 0):.2f}h0" for x, v in points)
        dots = Markup(f'<path class="dots" d="{where}"/>')
    ticks = Markup("").join(
        Markup('<span class="y" style="top:{:.2f}%">{}</span>').format(y, text)
        for y, (_, text) in zip(rules, labels, strict=True)
    )
    return Markup(
        '<p class="track-name"><b>{}</b> {}</p><div class="plot"><svg viewBox="0 0 {} 100"'
        ' preserveAspectRatio="none" role="img" aria-label="{} per row" focusable="false">'
        '{}{}<polyline class="signal" points="{}"/>{}</svg>{}</div>'
    ).format(
        track.name, track.unit, max(n_rows, 1), track.name, shades, lines, Markup(path), dots, ticks
    )


def _steps(spans: Sequence[Band], n_rows: int) -> Markup:
    """The bands as a two-level trace with a letter in every band that is wide enough."""
    blocks = Markup("").join(
        Markup(
            '<rect class="block {}" x="{}" y="{}" width="{}" height="44"><title>{}</title></rect>'
        ).format(
            band.kind,
            band.start,
            {"e": 4, "x": 52}.get(band.kind, 28),
            band.end - band.start,
            f"Rows {band.start + 1} to {band.end}: {band.what}",
        )
        for band in spans
    )
    letters = Markup("").join(
        Markup('<span class="letter {}" style="left:{}%">{}</span>').format(
            band.kind, share((band.start + band.end) / 2, n_rows), band.letter
        )
        for band in spans
        if band.letter and (band.end - band.start) >= 0.03 * n_rows
    )
    return Markup(
        '<p class="track-name"><b>phase</b> E, exploring (upper), or X, exploiting (lower)</p>'
        '<div class="plot steps"><svg viewBox="0 0 {} 100" preserveAspectRatio="none" role="img"'
        ' aria-label="Phase per row" focusable="false">{}</svg>{}</div>'
    ).format(max(n_rows, 1), blocks, letters)


def text(rows: Sequence[str], spans: Sequence[Band], titles: Sequence[str]) -> Markup:
    """The response's text, one span per row with its number, banded like the plots.

    The beginning and the end are shown when the whole is too long, with a line saying so.
    """
    of_row = [band for band in spans for _ in range(band.start, band.end)]
    shown = shown_rows(rows)
    parts: list[Markup] = []
    previous = -1
    for row in shown:
        if row != previous + 1:
            parts.append(omitted(previous + 1, row, len(rows)))
        band, words = of_row[row], rows[row]
        if len(words) > ROW_CHARACTERS:
            words = words[:ROW_CHARACTERS] + " [the rest of this row is not shown]"
        number = f"{row + 1}"
        if row == band.start or row != previous + 1:
            number = f"{band.letter}\N{NO-BREAK SPACE}{number}" if band.letter else number
        # The number stands where the row's words begin, not at the end of the line before.
        begin = len(words) - len(words.lstrip("\n")) if words.strip("\n") else 0
        parts.append(
            Markup(
                '<span class="row {}" data-r="{}" title="{}">{}<i data-n="{}"></i>{}</span>'
            ).format(band.kind, row, titles[row], words[:begin], number, words[begin:])
        )
        previous = row
    if previous + 1 < len(rows):
        parts.append(omitted(previous + 1, len(rows), len(rows)))
    return Markup(
        '<div class="trace-text" tabindex="0" role="region" aria-label="Text of the response">'
        "{}</div>"
    ).format(Markup("").join(parts))


def shown_rows(rows: Sequence[str]) -> list[int]:
    """Indices of the rows whose text is shown, within the limits at the head of this file."""

    def fitting(order: Sequence[int], most: int, characters: int) -> list[int]:
        kept: list[int] = []
        for row in order[:most]:
            characters -= min(len(rows[row]), ROW_CHARACTERS)
            if characters < 0:
                break
            kept.append(row)
        return kept

    head = fitting(range(len(rows)), ROWS_SHOWN[0], CHARACTERS_SHOWN[0])
    rest = range(len(rows) - 1, len(head) - 1, -1)
    return head + sorted(fitting(rest, ROWS_SHOWN[1], CHARACTERS_SHOWN[1]))


def omitted(start: int, end: int, n_rows: int) -> Markup:
    what = f"Row {end}" if end == start + 1 else f"Rows {start + 1:,} to {end:,}"
    verb = "is" if end == start + 1 else "are"
    return Markup('<span class="omitted">{}</span>').format(
        f"{what} of {n_rows:,} {verb} not shown, to keep this file small."
    )


def phases(reading: Mapping[str, Any]) -> Markup:
    """The NEX reading of one trace: novelty, its z-score, E/X phases, and the banded text.

    `reading` holds `candidate`, `prompt_id`, `sample`, `prompt`, `tokens` (T strings),
    `row_tokens`, `slope_R`, `z_R`, `explore_R`, `cycles`, `score` and `finish_reason`.
    """
    tokens = [str(token) for token in reading.get("tokens") or []]
    size = max(1, integer(reading.get("row_tokens")) or 1)
    rows = ["".join(tokens[start : start + size]) for start in range(0, len(tokens), size)]
    n_rows = len(rows)
    slope_R = [finite(value) for value in (reading.get("slope_R") or [])][:n_rows]
    z_R = [finite(value) for value in (reading.get("z_R") or [])][:n_rows]
    spans = bands(reading.get("explore_R") or [], n_rows)
    cut = reading.get("finish_reason") == "length"
    facts = [
        ("candidate", str(reading.get("candidate", ""))),
        ("prompt", f"{reading.get('prompt_id', '')}, sample {reading.get('sample', 0)}"),
        ("length", f"{grouped(len(tokens))} tokens in {grouped(n_rows)} rows"),
        ("ended", "cut at the token limit" if cut else "by itself"),
        ("rows in phase E", grouped(sum(b.end - b.start for b in spans if b.kind == "e"))),
        ("cycles", grouped(integer(reading.get("cycles")))),
        ("response score", signed(finite(reading.get("score")), 4)),
    ]
    head = Markup('<dl class="facts small">{}</dl>').format(
        Markup("").join(
            Markup("<div><dt>{}</dt><dd><bdi>{}</bdi></dd></div>").format(term, value)
            for term, value in facts
        )
    )
    prompt = str(reading.get("prompt") or "")
    if len(prompt) > CHARACTERS_SHOWN[1]:
        prompt = prompt[: CHARACTERS_SHOWN[1]] + " [the rest of the prompt is not shown]"
    asked = Markup(
        '<h3>Prompt</h3><div class="prompt" tabindex="0" role="region" aria-label="Prompt">{}</div>'
    ).format(prompt)
    if not rows:
        return head + asked + Markup("<p>The response is empty.</p>")
    clip = 8.0 if any(abs(z) > 8 for z in z_R if z is not None) else None
    tracks = [
        Track("novelty s", "new neurons per token (log scale)", slope_R, log=True),
        Track(
            "z",
            "novelty against its own trend, in robust deviations"
            + (", drawn cut at \N{PLUS-MINUS SIGN}8" if clip else ""),
            z_R,
            zero=True,
            clip=clip,
        ),
    ]
    of_row = [band for band in spans for _ in range(band.start, band.end)]

    def title(row: int) -> str:
        s = signed(slope_R[row] if row < len(slope_R) else None, 2)
        z = signed(z_R[row] if row < len(z_R) else None, 2)
        return f"row {row + 1}, {of_row[row].what}: s = {s}, z = {z}"

    legend = Markup(
        '<ul class="legend"><li><span class="chip e">E 1</span> exploring: novelty above its trend'
        '</li><li><span class="chip x">X 2</span> exploiting</li>'
        "<li>Point at the curves or the text; arrow keys step through the rows.</li></ul>"
    )
    readout = Markup('<p class="row-readout" aria-live="polite">\N{NO-BREAK SPACE}</p>')
    return (
        head
        + asked
        + Markup("<h3>Response</h3>")
        + legend
        + plots([t for t in tracks if any(v is not None for v in t.value_R)], spans, n_rows, size)
        + readout
        + text(rows, spans, [title(row) for row in range(n_rows)])
    )
