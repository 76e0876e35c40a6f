"""One monitored trace as a page: channels, detectors and firings above the text, step by step.

Draws a `surgeon.watch.replay.Replay`, by the rules of the ranking's page: one file that
asks for nothing, with foreign text escaped.
"""

# Shapes: T tokens of the response, R rows of `size` neighbouring tokens.

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from surgeon.report.page import filled
from surgeon.report.reading import CHARACTERS_SHOWN, ROW_CHARACTERS, cut, omitted, share, shown_rows
from surgeon.report.tracks import MonitoredView, down, labels, lanes, tracks, view_of
from surgeon.report.words import grouped, signed, times
from surgeon.watch.replay import Replay, ReplayFiring

STEP_CHARACTERS = 400
"""Of a failing step's text in the table."""
ROUNDING = 0.02
"""Logged and read-back probabilities that differ by more are both shown."""


def page(replay: Replay, rates: Mapping[str, float] | None = None) -> str:
    """The page of a replay; equal ones give equal pages.

    With `rates`, by level, the trace is one that was fired at random.
    """
    view, rates = view_of(replay), rates or {}
    name = f"{replay.prompt_id}, sample {replay.sample}"
    return filled(
        "monitored.html.j2",
        "page.css",
        "monitored.css",
        name=name,
        headline=_headline(view),
        ending=_ending(view, replay, bool(rates)),
        facts=_facts(view, replay, name, rates),
        prompt=cut(replay.prompt, CHARACTERS_SHOWN[1], "the prompt"),
        view=view,
        labels=labels(view),
        wide=lanes(view, 0.02),
        narrow=lanes(view, 0.08),
        tracks=list(tracks(view, replay)) if view.tokens else [],
        strides=[(s, a, b, view.left((a + b) / 2)) for s, (a, b) in enumerate(view.steps)],
        blocks=list(_blocks(view)),
        rows=[_firing_row(view, n, firing) for n, firing in enumerate(view.firings)],
    )


# ---------------------------------------------------------------- in words


def _headline(view: MonitoredView) -> str:
    length = times(len(view.tokens), "token")
    if not view.firings:
        return f"Nothing fired in {length}."
    counts = [(level, sum(f.level == level for f in view.firings)) for level in view.levels]
    listed = ", ".join(f"{level} {n}" for level, n in counts)
    return f"{times(len(view.firings), 'firing')} in {length}: {listed}."


def _ending(view: MonitoredView, replay: Replay, random: bool) -> str:
    cut = replay.finish_reason == "length"
    how = "was cut at the token limit" if cut else "ended by itself"
    text = f"The response {how} after {times(len(view.steps), 'step')}"
    if forced := int((view.firing_T >= 0).sum()):
        part = f"{100 * forced / len(view.tokens):.1f}%"
        text += f"; {times(forced, 'token')} ({part}) {'was' if forced == 1 else 'were'} forced"
    if random:
        text += ". The monitor fired at random; what its detectors say was read afterwards"
    return f"{text}."


def _facts(
    view: MonitoredView, replay: Replay, name: str, rates: Mapping[str, float]
) -> list[tuple[str, str, str]]:
    """(term, value, note)"""
    fired = {(firing.start, firing.level) for firing in view.firings}
    held = sum(
        view.fires(reading) and (reading.position, reading.level) not in fired
        for reading in view.readings
    )
    why = "" if rates else " (a pause, the cap, or another level's)"
    return [
        ("prompt", name, ""),
        (
            "channels",
            f"{times(len(replay.units), 'unit')}, {times(len(replay.heads), 'head')}",
            f"of layer {replay.layer}",
        ),
        (
            "readings",
            grouped(len(view.readings)),
            f"{held:,} at the threshold without a firing{why}" if held else "",
        ),
        *(
            (
                level,
                times(sum(firing.level == level for firing in view.firings), "firing"),
                f"fires at random, at {signed(rates[level], 3)} of the step ends"
                if level in rates
                else f"fires from {signed(row.threshold, 3)}",
            )
            for level, row in view.levels.items()
        ),
    ]


class FiringRow(NamedTuple):
    """A firing in the table, on its flags and where it is drawn."""

    n: int
    firing: ReplayFiring
    probability: str
    read_back: str
    """Empty where it is the logged one."""
    threshold: str
    forced: str
    text: str
    left: str
    top: str

    @property
    def level(self) -> str:
        return self.firing.level


def _firing_row(view: MonitoredView, n: int, firing: ReplayFiring) -> FiringRow:
    words, back = firing.text, firing.read_back
    if len(words) > STEP_CHARACTERS:
        words = words[:STEP_CHARACTERS] + "\N{HORIZONTAL ELLIPSIS}"
    differs = back is not None and abs(back - firing.probability) > ROUNDING
    return FiringRow(
        n,
        firing,
        probability=signed(firing.probability, 3),
        read_back=signed(back, 3) if differs else "",
        threshold=signed(view.levels[firing.level].threshold, 3),
        forced="".join(view.tokens[firing.position : firing.end]).strip(),
        text=words,
        left=view.left(firing.start - 0.5),
        top=f"{down(firing.probability if back is None else back):.2f}",
    )


# ---------------------------------------------------------------- text


class TokenRun(NamedTuple):
    """Neighbouring tokens of one row, all forced by the same firing or all chosen (-1)."""

    start: int
    row: int
    firing: int
    text: str


class Passage(NamedTuple):
    """The text of a step, or of what lies outside of the steps, and what was read at its end."""

    step: int | None
    runs: list[tuple[int, bool, list[tuple[str, int, str, str]]]]
    """(firing or -1, whether its tokens begin here, spans) of tokens forced by one firing."""
    fired: list[int]
    readings: str
    meters: list[tuple[str, str, str]]
    """(level, width of the reading or nothing, place of the threshold)"""


def _blocks(view: MonitoredView) -> Iterator[Passage]:
    """The response's text, step by step, and what lies outside of the steps."""
    edges = sorted({0, len(view.tokens), *(edge for step in view.steps for edge in step)})
    starts = {start: s for s, (start, _) in enumerate(view.steps)}
    size = view.size
    shown = shown_rows(
        ["".join(view.tokens[r * size : (r + 1) * size]) for r in range(view.n_rows)]
    )
    read: dict[int | None, dict[str, float]] = {}
    for reading in view.readings:
        read.setdefault(reading.step, {}).setdefault(reading.level, reading.probability)
    for start, end in pairwise(edges):
        runs = []
        pairs = _trimmed(_pieces(view, start, end))
        for n, group in groupby(pairs, lambda pair: pair[0].firing):
            run = list(group)
            spans = [span for pair in run if (span := _span(view, *pair, set(shown)))]
            begins = n >= 0 and run[0][0].start == view.firings[n].position
            if spans:
                runs.append((n, begins, spans))
        s = starts.get(start)
        if runs:
            yield _block(view, s, runs, read.get(s, {}))


def _block(
    view: MonitoredView, step: int | None, runs: list[Any], read: Mapping[str, float]
) -> Passage:
    """A block with what the detectors said at its end, by level."""
    return Passage(
        step,
        runs,
        fired=[n for n, firing in enumerate(view.firings) if firing.step == step],
        readings=", ".join(f"{level} {signed(p, 2)}" for level, p in read.items()) or "not read",
        meters=[
            (level, share(read[level], 1) if level in read else "", share(row.threshold, 1))
            for level, row in view.levels.items()
        ],
    )


def _pieces(view: MonitoredView, start: int, end: int) -> list[TokenRun]:
    """Tokens [start, end), cut at rows and where forcing begins and ends."""
    at, runs = start, []
    while at < end:
        row, firing, to = at // view.size, int(view.firing_T[at]), at + 1
        while to < min(end, (row + 1) * view.size) and view.firing_T[to] == firing:
            to += 1
        runs.append(TokenRun(at, row, firing, "".join(view.tokens[at:to])))
        at = to
    return runs


def _trimmed(pieces: Sequence[TokenRun]) -> list[tuple[TokenRun, str]]:
    """The pieces with the text to show, without the line breaks at both ends of a block."""
    texts = [piece.text for piece in pieces]
    for i in range(len(texts)):
        texts[i] = texts[i].lstrip("\n")
        if texts[i]:
            break
    for i in reversed(range(len(texts))):
        texts[i] = texts[i].rstrip("\n")
        if texts[i]:
            break
    return list(zip(pieces, texts, strict=True))


def _span(
    view: MonitoredView, piece: TokenRun, text: str, shown: set[int]
) -> tuple[str, int, str, str] | None:
    """(kind, row, title, text): the first piece of a row stands for it when it is pointed at."""
    first = piece.start == piece.row * view.size
    if piece.row not in shown:
        if not first or piece.row - 1 not in shown:
            return None
        following = min((row for row in shown if row > piece.row), default=view.n_rows)
        return "omitted", -1, "", omitted(piece.row, following, view.n_rows)
    # A token of nothing but line breaks still has a place to point at.
    kind = " ends" if piece.text and not text else ""
    return (
        kind,
        piece.row if first else -1,
        _title(view, piece.row) if first else "",
        cut(text, ROW_CHARACTERS, "this row"),
    )


def _title(view: MonitoredView, row: int) -> str:
    first, last = row * view.size, min((row + 1) * view.size, len(view.tokens)) - 1
    s = int(view.step_T[first])
    where = f"token {first + 1:,}" if first == last else f"tokens {first + 1:,} to {last + 1:,}"
    readings = ", ".join(f"{level} {signed(p[row], 2)}" for level, p in view.probability_R.items())
    return f"{where}, {f'step {s + 1}' if s >= 0 else 'no step'}: {readings}"
