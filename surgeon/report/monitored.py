"""One monitored trace as a page: channels, detectors and firings above the text, step by step.

Draws what `surgeon.neureasoner.replay` returns, by the rules of the ranking's page: one file that
asks for nothing, with foreign text escaped.
"""

# Shapes: T tokens of the response, R rows of `size` neighbouring tokens, C channels.

import base64
import hashlib
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from surgeon.report import HERE, _template
from surgeon.report.figures import Axis, axis
from surgeon.report.reading import CHARACTERS_SHOWN, ROW_CHARACTERS, _omitted, _share, _shown
from surgeon.report.rows import Json
from surgeon.report.words import DASH, finite, grouped, signed, visible

LEVELS = {
    "intra": "a wrong step",
    "inter": "stagnation between steps",
    "instance": "an easy question, thought about for too long",
}
"""Failure levels and what they are, in the order they are drawn."""
MOST_ROWS = 1200
"""Longer responses are drawn in rows of several tokens: no window is wide enough for more."""
NAMED_CHANNELS = 16
"""Heat maps of at most this many channels name each of them."""
MANY_READINGS = 150
"""More readings of a level than this are drawn as smaller dots."""
STEP_CHARACTERS = 400
"""Of a failing step's text in the table."""
ROUNDING = 0.02
"""Logged and read-back probabilities that differ by more are both shown."""
SHADES = 16
LIGHT = ((0xFB, 0xFA, 0xF6), (0x8F, 0x9C, 0xA0), (0x16, 0x26, 0x30))
DARK = ((0x14, 0x16, 0x1A), (0x5C, 0x6E, 0x76), (0xF2, 0xF0, 0xE8))
"""Silent, half and loud in a heat map, by colour scheme."""
SCALE = Axis(-0.04, 1.04, (0.0, 0.5, 1.0), 0.5)
"""Of probabilities."""


class View(NamedTuple):
    """The trace, cut to what a page can show."""

    tokens: list[str]
    size: int
    n_rows: int
    steps: list[tuple[int, int]]
    levels: dict[str, Json]
    readings: list[Json]
    firings: list[Json]
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
        return _share(token, self.width)

    def fires(self, reading: Json) -> bool:
        """The reading is at or above its threshold."""
        return reading["probability"] >= self.levels[reading["level"]]["threshold"]


def page(data: Json) -> str:
    """The page of what `replay` returned; equal data give equal pages."""
    view = _view(data)
    script = (HERE / "page.js").read_text(encoding="utf-8")
    prompt = str(data.get("prompt") or "")
    if len(prompt) > CHARACTERS_SHOWN[1]:
        prompt = prompt[: CHARACTERS_SHOWN[1]] + " [the rest of the prompt is not shown]"
    name = f"{data.get('prompt_id', '')}, sample {data.get('sample', 0)}"
    rendered = _template().environment.from_string(PAGE).render(
        style=Markup((HERE / "page.css").read_text(encoding="utf-8") + STYLE),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        name=name,
        headline=_headline(view),
        ending=_ending(view, data),
        facts=_facts(view, data, name),
        prompt=prompt,
        view=view,
        labels=_labels(view),
        pins=_pins(view),
        tracks=list(_tracks(view, data)) if view.tokens else [],
        strides=[(s, a, b, view.left((a + b) / 2)) for s, (a, b) in enumerate(view.steps)],
        blocks=list(_blocks(view)),
        levels=LEVELS,
        rows=[_row(view, n, firing) for n, firing in enumerate(view.firings)],
    )  # fmt: skip
    return visible(rendered)


def _view(data: Json) -> View:
    tokens = [str(token) for token in data.get("tokens") or []]
    T = len(tokens)
    size = -(-T // MOST_ROWS) or 1
    steps = [(int(start), int(end)) for start, end in data.get("steps") or []]
    levels = {level: data["levels"][level] for level in LEVELS if level in data["levels"]}
    firings, readings = (
        [one for one in data.get(name) or [] if one["level"] in levels]
        for name in ("firings", "readings")
    )
    step_T, firing_T = np.full((2, T), -1)
    for s, (start, end) in enumerate(steps):
        step_T[start:end] = s
    for n, firing in enumerate(firings):
        firing_T[firing["position"] : firing["end"]] = n
    probability_R = {
        level: [_mean(row["probability_T"][at : at + size]) for at in range(0, T, size)]
        for level, row in levels.items()
    }
    return View(
        tokens, size, -(-T // size), steps, levels, readings, firings, step_T, firing_T,
        probability_R,
    )  # fmt: skip


def _mean(values: Sequence[Any]) -> float | None:
    known = [number for value in values if (number := finite(value)) is not None]
    return sum(known) / len(known) if known else None


# ---------------------------------------------------------------- in words


def _times(n: int, word: str) -> str:
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def _headline(view: View) -> str:
    length = _times(len(view.tokens), "token")
    if not view.firings:
        return f"Nothing fired in {length}."
    counts = [(level, sum(f["level"] == level for f in view.firings)) for level in view.levels]
    listed = ", ".join(f"{level} {n}" for level, n in counts)
    return f"{_times(len(view.firings), 'firing')} in {length}: {listed}."


def _ending(view: View, data: Json) -> str:
    cut = data.get("finish_reason") == "length"
    how = "was cut at the token limit" if cut else "ended by itself"
    said = f"The response {how} after {_times(len(view.steps), 'step')}"
    if forced := int((view.firing_T >= 0).sum()):
        share = f"{100 * forced / len(view.tokens):.1f}%"
        said += f"; {_times(forced, 'token')} ({share}) {'was' if forced == 1 else 'were'} forced"
    return f"{said}."


def _facts(view: View, data: Json, name: str) -> list[tuple[str, str, str]]:
    """(term, value, note)"""
    fired = {(firing["start"], firing["level"]) for firing in view.firings}
    held = sum(
        view.fires(reading) and (reading["position"], reading["level"]) not in fired
        for reading in view.readings
    )
    units, heads = len(data.get("units") or []), len(data.get("heads") or [])
    return [
        ("prompt", name, ""),
        (
            "channels",
            f"{_times(units, 'unit')}, {_times(heads, 'head')}",
            f"of layer {data.get('layer', DASH)}",
        ),
        (
            "readings",
            grouped(len(view.readings)),
            f"{held:,} at the threshold without a firing" if held else "",
        ),
        *(
            (
                level,
                _times(sum(firing["level"] == level for firing in view.firings), "firing"),
                f"fires from {signed(row['threshold'], 3)}",
            )
            for level, row in view.levels.items()
        ),
    ]


def _row(view: View, n: int, firing: Json) -> dict[str, Any]:
    """A firing in the table, on its flags and where it is drawn."""
    words, back = str(firing.get("text", "")), finite(firing.get("read_back"))
    if len(words) > STEP_CHARACTERS:
        words = words[:STEP_CHARACTERS] + "\N{HORIZONTAL ELLIPSIS}"
    differs = back is not None and abs(back - firing["probability"]) > ROUNDING
    return {
        **firing,
        "n": n,
        "shown": signed(firing["probability"], 3),
        "back": signed(back, 3) if differs else "",
        "threshold": signed(view.levels[firing["level"]]["threshold"], 3),
        "forced": "".join(view.tokens[firing["position"] : firing["end"]]).strip(),
        "text": words,
        "left": view.left(firing["start"] - 0.5),
        "top": f"{_down(firing['probability'] if back is None else back):.2f}",
    }


# ---------------------------------------------------------------- charts


def _labels(view: View) -> list[tuple[str, str]]:
    """(place, number) of some tokens."""
    n = len(view.tokens)
    ticks = range(1, n + 1) if n <= 8 else axis([1, n], ticks=8, pad=0).ticks
    whole = [tick for tick in ticks if tick == int(tick) and 1 <= tick <= n]
    return [(view.left(tick - 0.5), f"{tick:,.0f}") for tick in whole]


def _pins(view: View) -> list[int]:
    """The lane of each firing's flag: flags that would overlap stand above each other."""
    ends: list[float] = []
    found = []
    for firing in view.firings:
        left = firing["start"] / view.width
        lane = next((i for i, end in enumerate(ends) if left - end >= 0.02), len(ends))
        ends[lane : lane + 1] = [left]
        found.append(lane)
    return found


def _tracks(view: View, data: Json) -> Iterator[dict[str, Any]]:
    """For each level its channels' heat map and its detector's curve."""
    x_TC = np.asarray(data["activation_TC"], float).reshape(len(view.tokens), -1)
    names = [f"unit {unit}" for unit in data["units"]] + [f"head {head}" for head in data["heads"]]
    for level, row in view.levels.items():
        channels = [names[c] for c in row["columns"]]
        units = sum(name.startswith("unit") for name in channels)
        runs = [(first, n, kind) for first, n, kind in
                ((0, units, "unit"), (units, len(channels) - units, "head")) if n]  # fmt: skip
        ticks = [(first, first + n, _times(n, kind)) for first, n, kind in runs]
        window = _times(int(row["window"]), "step")
        listed = " and ".join(words for *_, words in ticks)
        n = len(channels)
        if n <= NAMED_CHANNELS:
            ticks = [(c, c + 1, name) for c, name in enumerate(channels)]
        yield {
            "level": level,
            "told": f"{LEVELS[level]}; {listed}, read over the "
            + (f"first {window}" if level == "instance" else f"last {window}"),
            "images": _heat(x_TC[:, row["columns"]], view.size),
            "height": f"{0.8 * n if n <= NAMED_CHANNELS else min(11, max(6, 0.16 * n)):.2f}",
            "names": [(_share((first + last) / 2, n), words) for first, last, words in ticks],
            "between": _share(units, n) if 0 < units < n else "",
            **_curve(level, view),
        }


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


def _down(probability: float) -> float:
    return SCALE.place(min(max(probability, 0.0), 1.0), 100, 0)


def _curve(level: str, view: View) -> dict[str, Any]:
    """The detector's probability, its threshold, and the readings at step ends."""
    threshold = float(view.levels[level]["threshold"])
    lines = []
    for known, run in groupby(enumerate(view.probability_R[level]), lambda at: at[1] is not None):
        if known:
            points = [f"{(r + 0.5) * view.size:g},{_down(p or 0.0):.1f}" for r, p in run]
            # A line needs two ends.
            lines.append(" ".join(points if len(points) > 1 else points * 2))
    mine = [reading for reading in view.readings if reading["level"] == level]
    ticks = [(tick, SCALE.text(tick)) for tick in SCALE.ticks if abs(tick - threshold) > 0.17]
    return {
        "grid": [f"{_down(tick):.2f}" for tick in SCALE.ticks],
        "ticks": [(f"{_down(value):.2f}", words) for value, words in ticks],
        "threshold": (f"{_down(threshold):.2f}", signed(threshold, 2)),
        "lines": lines,
        "dots": [
            "".join(
                f"M{reading['position'] - 0.5:g} {_down(reading['probability']):.1f}h0"
                for reading in mine
                if view.fires(reading) is over
            )
            for over in (False, True)
        ],
        "many": len(mine) > MANY_READINGS,
    }


# ---------------------------------------------------------------- text


class Piece(NamedTuple):
    """Neighbouring tokens of one row, all forced by the same firing or all chosen (-1)."""

    start: int
    row: int
    firing: int
    text: str


def _blocks(view: View) -> Iterator[dict[str, Any]]:
    """The response's text, step by step, and what lies outside of the steps."""
    edges = sorted({0, len(view.tokens), *(edge for step in view.steps for edge in step)})
    starts = {start: s for s, (start, _) in enumerate(view.steps)}
    size = view.size
    shown = _shown(["".join(view.tokens[r * size : (r + 1) * size]) for r in range(view.n_rows)])
    read: dict[int | None, dict[str, float]] = {}
    for reading in view.readings:
        read.setdefault(reading["step"], {}).setdefault(reading["level"], reading["probability"])
    for start, end in pairwise(edges):
        runs = []
        pairs = _trimmed(_pieces(view, start, end))
        for n, group in groupby(pairs, lambda pair: pair[0].firing):
            run = list(group)
            spans = [span for pair in run if (span := _span(view, *pair, set(shown)))]
            begins = n >= 0 and run[0][0].start == view.firings[n]["position"]
            if spans:
                runs.append((n, begins, spans))
        s = starts.get(start)
        if runs:
            yield {"step": s, "runs": runs, **_said(view, s, read.get(s, {}))}


def _said(view: View, s: int | None, said: Mapping[str, float]) -> dict[str, Any]:
    """What the detectors said at a step's end."""
    return {
        "fired": [n for n, firing in enumerate(view.firings) if firing["step"] == s],
        "told": ", ".join(f"{level} {signed(p, 2)}" for level, p in said.items()) or "not read",
        "meters": [
            (level, _share(said[level], 1) if level in said else "", _share(row["threshold"], 1))
            for level, row in view.levels.items()
        ],
    }


def _pieces(view: View, start: int, end: int) -> list[Piece]:
    """Tokens [start, end), cut at rows and where forcing begins and ends."""
    at, found = start, []
    while at < end:
        row, firing, to = at // view.size, int(view.firing_T[at]), at + 1
        while to < min(end, (row + 1) * view.size) and view.firing_T[to] == firing:
            to += 1
        found.append(Piece(at, row, firing, "".join(view.tokens[at:to])))
        at = to
    return found


def _trimmed(pieces: Sequence[Piece]) -> list[tuple[Piece, str]]:
    """The pieces with the text to show, without the line breaks at both ends of a block."""
    found = [piece.text for piece in pieces]
    for i in range(len(found)):
        found[i] = found[i].lstrip("\n")
        if found[i]:
            break
    for i in reversed(range(len(found))):
        found[i] = found[i].rstrip("\n")
        if found[i]:
            break
    return list(zip(pieces, found, strict=True))


def _span(view: View, piece: Piece, text: str, shown: set[int]) -> tuple[str, int, str, Any] | None:
    """(kind, row, title, text): the first piece of a row stands for it when it is pointed at."""
    first = piece.start == piece.row * view.size
    if piece.row not in shown:
        if not first or piece.row - 1 not in shown:
            return None
        following = min((row for row in shown if row > piece.row), default=view.n_rows)
        return "", -1, "", _omitted(piece.row, following, view.n_rows)
    if len(text) > ROW_CHARACTERS:
        text = text[:ROW_CHARACTERS] + " [the rest of this row is not shown]"
    # A token of nothing but line breaks still has a place to point at.
    kind = " ends" if piece.text and not text else ""
    return kind, piece.row if first else -1, _title(view, piece.row) if first else "", text


def _title(view: View, row: int) -> str:
    first, last = row * view.size, min((row + 1) * view.size, len(view.tokens)) - 1
    s = int(view.step_T[first])
    where = f"token {first + 1:,}" if first == last else f"tokens {first + 1:,} to {last + 1:,}"
    said = ", ".join(f"{level} {signed(p[row], 2)}" for level, p in view.probability_R.items())
    return f"{where}, {f'step {s + 1}' if s >= 0 else 'no step'}: {said}"


# ---------------------------------------------------------------- the page

STYLE = """
.l-intra { --l: var(--truth); } .l-inter { --l: var(--s4); } .l-instance { --l: var(--s0); }
.strip.monitored { padding-left: 4.6rem; }
.monitored .area { overflow-y: clip; }
.pins { position: relative; margin-top: .4rem; border-top: .25rem solid transparent; }
.pin, .flag { font: 700 .72rem/1.1rem var(--sans); text-decoration: none; color: var(--paper); background: var(--l); border-radius: 2px; }
.pin { display: inline-block; min-width: 1.2rem; padding: 0 .25rem; text-align: center; }
.pins .pin { position: absolute; transform: translateX(-50%); z-index: 2; }
.ray { position: absolute; top: .4rem; height: 100rem; border-left: 1.5px solid var(--l); margin-left: -.75px; opacity: .7; z-index: 1; pointer-events: none; }
.monitored .rows-axis span { white-space: nowrap; }
.monitored .track-name { margin-top: 1rem; }
.monitored .track-name b { border-left: .8rem solid var(--l, transparent); padding-left: .4rem; }
.heat img { position: absolute; inset: 0; width: 100%; height: 100%; border-block: 1px solid var(--rule); }
.heat.crisp img { image-rendering: pixelated; }
.heat .y { font-size: .66rem; }
.between { position: absolute; left: 0; right: 0; border-top: 1px solid var(--rule); }
.plot.probability { height: 5.2rem; margin-top: .8rem; }
.probability .signal, .swatch .signal { stroke: var(--l); stroke-width: 1.1; opacity: .8; }
.threshold { stroke: var(--l); stroke-width: 1.3; stroke-dasharray: 5 4; vector-effect: non-scaling-stroke; }
.plot .y.at { color: var(--l); font-weight: 700; }
.read { fill: none; stroke: var(--l); stroke-width: 6.5; stroke-linecap: round; vector-effect: non-scaling-stroke; }
.read.hole { stroke: var(--paper); stroke-width: 3.6; }
.many .read { stroke-width: 4; } .many .read.hole { stroke-width: 2; }
.circle { position: absolute; width: 15px; height: 15px; transform: translate(-50%, -50%); border: 2px solid var(--l); border-radius: 50%; z-index: 2; }
.circle.on, .pin.on, .flag.on, .forced.on { outline: 2px solid var(--ink); outline-offset: 1px; }
.plot.strides { height: 1.4rem; }
.stride0 { fill: var(--grid); } .stride1 { fill: var(--rule); } .push { fill: var(--l); }
.strides .letter { top: 38%; color: var(--ink); font-weight: 500; }
.trace-text.by-step { padding: 0; line-height: 1.6; max-height: 44rem; }
.step { display: grid; grid-template-columns: 2.6rem minmax(0, 1fr) 8.6rem; column-gap: .9rem; padding: .22rem .8rem .22rem 0; border-left: 4px solid transparent; border-bottom: 1px solid var(--grid); }
.step.fired { border-left-color: var(--l); background: color-mix(in srgb, var(--l) 9%, transparent); }
.number { text-align: right; color: var(--soft); font: .72rem/1.95 var(--sans); }
.words { unicode-bidi: plaintext; }
.by-step .row { padding: 0; }
.ends::after { content: "↵"; color: var(--rule); }
.forced { background: var(--l); color: var(--paper); padding: .1em .3em; border-radius: 2px; -webkit-box-decoration-break: clone; box-decoration-break: clone; }
.forced .ends::after { color: inherit; }
.said-by { padding-top: .32rem; white-space: normal; line-height: 1; }
.meter { display: block; position: relative; height: 4px; margin-bottom: 2px; background: var(--grid); }
.meter:empty { visibility: hidden; }
.meter i { position: absolute; inset: 0 auto 0 0; background: var(--l); }
.meter b { position: absolute; top: -1px; bottom: -1px; border-left: 1.5px solid var(--ink); }
.flag { display: inline-block; margin-top: .25rem; padding: .05rem .4rem; font-weight: 500; }
.key { display: inline-block; width: 2.2rem; height: .8rem; border: 1px solid var(--rule); background: linear-gradient(to right, var(--paper), #7d8a90, var(--ink)); }
.key.meter { height: 4px; border: 0; margin: 0; background: var(--grid); }
.firings tbody th { font-family: inherit; white-space: nowrap; min-width: 6rem; }
.firings .pin { margin-right: .4rem; }
.firings .literal { white-space: pre-wrap; font: .8rem/1.5 var(--mono); min-width: 9rem; unicode-bidi: plaintext; }
@media (max-width: 40rem) {
  .strip.monitored { padding-left: 3.6rem; } .strides .letter { display: none; }
  .step { grid-template-columns: 1.5rem minmax(0, 1fr) 4.4rem; column-gap: .5rem; padding-right: .4rem; }
  .flag { font-size: .62rem; padding: .05rem .2rem; }
}
@media print { .step { break-inside: avoid; } }
"""  # noqa: E501

PAGE = """\
{% macro head(label, kind='') %}
<th scope="col" class="{{ kind }}"><button type="button">{{ label }}</button></th>
{%- endmacro %}
{% macro pin(n, style='') %}
<a class="pin l-{{ rows[n].level }}" data-c="{{ n }}" href="#firing-{{ n }}" title="{{ rows[n].level }} fires after step {{ rows[n].step + 1 }}, probability {{ rows[n].shown }}"{% if style %} style="{{ style }}"{% endif %}>{{ n + 1 }}</a>
{%- endmacro %}
{% macro heat(track) %}
<div class="plot heat{{ ' crisp' if view.n_rows <= 600 }}" style="height:{{ track.height }}rem"><picture>
  <source media="screen and (prefers-color-scheme: dark)" srcset="{{ track.images[1] }}">
  <img src="{{ track.images[0] }}" alt="Activations of the {{ track.level }} channels" draggable="false"></picture>
  {% for top, words in track.names %}<span class="y" style="top:{{ top }}%">{{ words }}</span>{% endfor %}
  {% if track.between %}<span class="between" style="top:{{ track.between }}%"></span>{% endif %}
</div>
{% endmacro %}
{% macro curve(track) %}
<div class="plot probability l-{{ track.level }}{{ ' many' if track.many }}">
  <svg viewBox="0 0 {{ view.width }} 100" preserveAspectRatio="none" role="img" aria-label="Probability of {{ track.level }} per token" focusable="false">
  {% for y in track.grid %}<line class="grid" x1="0" x2="{{ view.width }}" y1="{{ y }}" y2="{{ y }}"/>{% endfor %}
  <line class="threshold" x1="0" x2="{{ view.width }}" y1="{{ track.threshold[0] }}" y2="{{ track.threshold[0] }}"/>
  {% for points in track.lines %}<polyline class="signal" points="{{ points }}"/>{% endfor %}
  <path class="read" d="{{ track.dots[0] }}"/><path class="read hole" d="{{ track.dots[0] }}"/>
  <path class="read" d="{{ track.dots[1] }}"/></svg>
  {% for top, words in track.ticks %}<span class="y" style="top:{{ top }}%">{{ words }}</span>{% endfor %}
  <span class="y at" style="top:{{ track.threshold[0] }}%">{{ track.threshold[1] }}</span>
  {% for row in rows if row.level == track.level %}<span class="circle" data-c="{{ row.n }}" style="left:{{ row.left }}%;top:{{ row.top }}%"></span>{% endfor %}
</div>
{% endmacro %}
{% macro span(kind, row, title, text) %}
{% if row >= 0 %}<span class="row{{ kind }}" data-r="{{ row }}" title="{{ title }}">{{ text }}</span>{% elif kind %}<span class="{{ kind }}"></span>{% else %}{{ text }}{% endif %}
{% endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{{ script_hash }}'; img-src data:; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="surgeon">
<link rel="icon" href="data:,">
<title>Monitored trace: {{ name }}</title>
<style>
{{ style }}
</style>
</head>
<body>
<header>
  <p class="eyebrow">surgeon <span>monitored trace</span></p>
  <h1>{{ headline }}</h1>
  <p class="lead">{{ ending }}</p>
  <dl class="facts">
    {% for term, value, note in facts %}
    <div><dt>{{ term }}</dt><dd><bdi>{{ value }}</bdi>{% if note %}<small>{{ note }}</small>{% endif %}</dd></div>
    {% endfor %}
  </dl>
</header>
<main>
<section id="trace">
  <h2>The trace, watched</h2>
  <h3>Prompt</h3>
  <div class="prompt" tabindex="0" role="region" aria-label="Prompt">{{ prompt }}</div>
  <h3>Response</h3>
  {% if view.tokens %}
  <ul class="legend">
    <li><span class="key"></span> a channel, from its lowest to its highest</li>
    <li><svg class="swatch l-instance" viewBox="0 0 30 14" aria-hidden="true"><path class="read" d="M7 7h0"/><path class="read hole" d="M7 7h0"/><path class="read" d="M22 7h0"/></svg> read at a step's end: below, from the threshold up</li>
    <li><svg class="swatch l-instance" viewBox="0 0 30 14" aria-hidden="true"><polyline class="signal" points="1,11 10,5 19,9 29,3"/></svg> what a reading after each token would be</li>
    <li><svg class="swatch l-instance" viewBox="0 0 30 14" aria-hidden="true"><line class="threshold" x1="1" y1="7" x2="29" y2="7"/></svg> threshold</li>
    {% if rows %}<li><span class="pin l-{{ rows[0].level }}">1</span> a firing: in the charts, the text and the table</li>{% endif %}
    <li class="screen">Point at the charts or the text; arrow keys step through the tokens.</li>
  </ul>
  <div class="strip monitored" tabindex="0" role="slider" aria-label="Token of the response" aria-valuemin="1" aria-valuemax="{{ view.n_rows }}" aria-valuenow="1" data-rows="{{ view.n_rows }}">
    <div class="area">
      {% if rows %}
      <div class="pins" style="height:{{ '%.2f' % (1.3 * pins|max + 1.45) }}rem">
        {% for lane in pins %}
        <span class="ray l-{{ rows[loop.index0].level }}" style="left:{{ rows[loop.index0].left }}%"></span>
        {{ pin(loop.index0, 'left:%s%%;top:%.1frem' % (rows[loop.index0].left, 1.3 * lane)) }}
        {% endfor %}
      </div>
      {% endif %}
      {% for track in tracks %}
      <p class="track-name l-{{ track.level }}"><b>{{ track.level }}</b> {{ track.told }}</p>
      {{ heat(track) }}{{ curve(track) }}
      {% endfor %}
      <p class="track-name">steps of the thinking, and where tokens were forced</p>
      <div class="plot strides"><svg viewBox="0 0 {{ view.width }} 100" preserveAspectRatio="none" role="img" aria-label="Steps" focusable="false">
        {% for s, start, end, middle in strides %}<rect class="stride{{ s % 2 }}" x="{{ start }}" y="0" width="{{ end - start }}" height="100"/>{% endfor %}
        {% for row in rows %}<rect class="push l-{{ row.level }}" x="{{ row.start }}" y="70" width="{{ [row.end - row.start, view.width / 400]|max }}" height="30"/>{% endfor %}
        </svg>
        {% for s, start, end, middle in strides if end - start >= 0.025 * view.width %}<span class="letter" style="left:{{ middle }}%">{{ s + 1 }}</span>{% endfor %}
      </div>
      <div class="cursor" hidden></div>
    </div>
    <div class="rows-axis" aria-hidden="true">{% for left, words in labels %}<span style="left:{{ left }}%">{{ words }}</span>{% endfor %}</div>
    <p class="axis-name">token of the response{% if view.size > 1 %} (drawn in rows of {{ view.size }}){% endif %}</p>
  </div>
  <p class="row-readout" aria-live="polite">\N{NO-BREAK SPACE}</p>
  <ul class="legend">
    {% for level in view.levels if level in rows|map(attribute='level') %}
    <li><mark class="forced l-{{ level }}">{{ level }}</mark> forced at this level</li>
    {% endfor %}
    <li><span class="meter key l-instance"><i style="width:70%"></i><b style="left:45%"></b></span> at the right of a step: what each detector said at its end, and the threshold</li>
  </ul>
  <div class="trace-text by-step" tabindex="0" role="region" aria-label="Text of the response">
  {%- for block in blocks %}
<div class="step{% if block.fired %} fired l-{{ rows[block.fired[0]].level }}{% endif %}"><span class="number">{% if block.step is not none %}{{ block.step + 1 }}{% endif %}</span><div class="words">
    {%- for n, begins, spans in block.runs %}
{% if n >= 0 %}<mark class="forced l-{{ rows[n].level }}" data-c="{{ n }}"{% if begins %} id="firing-{{ n }}"{% endif %}>{% endif %}
{% for one in spans %}{{ span(*one) }}{% endfor %}
{% if n >= 0 %}</mark>{% endif %}
    {%- endfor %}
</div>{% if block.step is not none %}<div class="said-by" title="{{ block.told }}">
    {%- for level, width, at in block.meters %}<span class="meter l-{{ level }}">{% if width %}<i style="width:{{ width }}%"></i><b style="left:{{ at }}%"></b>{% endif %}</span>{% endfor %}
    {%- for n in block.fired %}<span class="flag l-{{ rows[n].level }}" data-c="{{ n }}"><b>{{ n + 1 }}</b> {{ rows[n].level }} {{ rows[n].shown }}</span>{% endfor %}
</div>{% endif %}</div>
  {%- endfor %}
</div>
  {% else %}
  <p>The response is empty.</p>
  {% endif %}
</section>

<section id="firings">
  <h2>Firings</h2>
  {% if rows %}
  <div class="scroll" tabindex="0" role="region" aria-label="Table of firings">
  <table class="sortable firings">
    <thead><tr>{{ head('Firing', 'name') }}{{ head('Token', 'num') }}{{ head('Step', 'num') }}{{ head('Probability', 'num') }}{{ head('Threshold', 'num') }}{{ head('Forced') }}{{ head('The step that failed') }}</tr></thead>
    <tbody>
      {% for row in rows %}
      <tr data-c="{{ row.n }}">
        <th scope="row" data-v="{{ row.level }} {{ row.n + 1 }}">{{ pin(row.n) }}{{ row.level }}</th>
        <td class="num" data-v="{{ row.position }}">{{ row.position + 1 }}</td>
        <td class="num" data-v="{{ row.step }}">{{ row.step + 1 }}</td>
        <td class="num" data-v="{{ row.probability }}"><b>{{ row.shown }}</b>{% if row.back %}<small>read back {{ row.back }}</small>{% endif %}</td>
        <td class="num" data-v="{{ row.threshold }}">{{ row.threshold }}</td>
        <td class="literal" data-v="{{ row.forced }}"><bdi>{{ row.forced }}</bdi></td>
        <td class="literal" data-v="{{ row.text }}">{{ row.text }}</td>
      </tr>
      {% endfor %}
    </tbody>
  </table>
  </div>
  {% if rows|selectattr('back')|list %}
  <p class="note">The logged probability and the one read back from the trace differ where the firing was drawn at random, and in low precision.</p>
  {% endif %}
  {% else %}
  <p>No detector fired.</p>
  {% endif %}
</section>

</main>
<script>{{ script }}</script>
</body>
</html>
"""  # noqa: E501
