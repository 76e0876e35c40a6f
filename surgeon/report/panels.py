"""Which charts the page has: every score, all evidence, and each score against accuracy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from surgeon.report import figures
from surgeon.report.figures import Mark
from surgeon.report.rows import (
    EVIDENCE,
    Ends,
    Json,
    Measure,
    Row,
    find_most_accurate,
    interval_text,
    measure_of,
    number,
    with_unit,
)
from surgeon.report.words import finite, signed

NO_ENDS: Ends = (None, None)


class Figure(NamedTuple):
    """One panel of a group of small charts."""

    title: str
    unit: str
    what: str
    note: str
    """What the panel says when nothing is pointed at."""
    svg: Markup


class Group(NamedTuple):
    """Panels that share an axis, the axis' name, and the legend of their lines and signs."""

    heading: str
    axis: str
    legend: list[tuple[Markup, str]]
    figures: list[Figure]
    tied: bool
    accurate: bool
    intervals: bool


class Curve(NamedTuple):
    """One quantity of all candidates, in the unit shown; both lists follow the ranking's order."""

    key: str
    measure: Measure
    value: Sequence[float | None]
    ends: Sequence[Ends]


def score_groups(
    rows: Sequence[Row], scores: Sequence[str], favourites: Mapping[str, int]
) -> list[Group]:
    """Every score against the ratio; by rank for the candidates without one."""
    curves = [
        Curve(
            score,
            measure_of(score),
            [row.value.get(score) for row in rows],
            [row.interval.get(score, NO_ENDS) for row in rows],
        )
        for score in scores
    ]
    return _groups(rows, curves, favourites, find_most_accurate(rows))


def evidence_groups(rows: Sequence[Row]) -> list[Group]:
    """What stands behind the scores, drawn like them; quantities nobody has are left out."""
    curves = [
        Curve(key, measure, [row.evidence[key] for row in rows], [NO_ENDS] * len(rows))
        for key, measure in EVIDENCE.items()
        if any(row.evidence[key] is not None for row in rows)
    ]
    return _groups(rows, curves, {}, None)


def scatter_figures(
    rows: Sequence[Row], scores: Sequence[str], favourites: Mapping[str, int], quality: Json
) -> list[Figure]:
    """Each score against accuracy, when at least three accuracies are known."""
    if sum(row.value["accuracy"] is not None for row in rows) < 3:
        return []
    lines = [{row.index for row in line} for line in series(rows).values()]
    drawn = []
    for score in scores:
        if score == "accuracy":
            continue
        measure = measure_of(score)
        marks = []
        for row in rows:
            x, y = row.value.get(score), row.value["accuracy"]
            if x is not None and y is not None:
                said = f"{_said(row, measure, x, NO_ENDS)}, accuracy {signed(y, 1)}%"
                line = next((i for i, members in enumerate(lines) if row.index in members), 0)
                marks.append(Mark(row.index, x, y, None, None, said, row.tied, line))
        known = quality.get(score) or {}
        r, regret = finite(known.get("pearson")), finite(known.get("regret_at_1"))
        note = f"r = {signed(r, 2)}, regret {signed(regret, 1)} pp" if known else ""
        told = f"Accuracy in % against {measure.label}, {len(marks)} candidates; {note}"
        svg = figures.scatter_panel(marks, label=told, favourite=favourites.get(score))
        drawn.append(Figure(measure.label, measure.unit, measure.what, note, svg))
    return drawn


def series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Lines of the ratio charts: label -> candidates with a ratio.

    A line is a merge method; where a method has two candidates of one ratio, it is split by the
    directory they came from. A candidate without a method (an endpoint) belongs to every line.
    """
    placed = [row for row in rows if row.ratio is not None]
    shared = [row for row in placed if not row.method]
    lines: dict[str, list[Row]] = {}
    for method in sorted({row.method for row in placed if row.method}):
        members = [row for row in placed if row.method == method]
        if len({row.ratio for row in members}) == len(members):
            lines[method] = members
            continue
        for row in members:
            family, fragment, _ = row.checkpoint.partition("#")
            source = family if fragment else str(Path(row.checkpoint).parent)
            lines.setdefault(f"{method}, {source}", []).append(row)
    if not lines:
        return {"": shared} if shared else {}
    return {label: [*members, *shared] for label, members in lines.items()}


def _groups(
    rows: Sequence[Row],
    curves: Sequence[Curve],
    favourites: Mapping[str, int],
    most_accurate: int | None,
) -> list[Group]:
    lines = series(rows)
    placed = {row.index for members in lines.values() for row in members}
    others = [row for row in rows if row.index not in placed]
    ratios = [row.ratio for row in rows if row.index in placed and row.ratio is not None]
    x_scale = figures.axis(ratios, pad=0.03)
    by_ratio: list[Figure] = []
    by_rank: list[Figure] = []
    for curve in curves:
        measure = curve.measure
        note = "" if any(value is not None for value in curve.value) else "no values"
        favourite = favourites.get(curve.key)
        if favourite is not None:
            verb = "highest at" if curve.key == "accuracy" else "prefers"
            shown = number(measure, curve.value[favourite])
            note = f"{verb} {rows[favourite].name}: {shown}"
        told = f"{measure.label} {measure.unit}".strip() + (f"; {note}" if note else "")
        options: dict[str, Any] = dict(favourite=favourite, most_accurate=most_accurate)
        if placed:
            marks = [
                _mark(row, curve, row.ratio, None, line)
                for line, members in enumerate(lines.values())
                for row in members
                if curve.value[row.index] is not None
            ]
            svg = figures.ratio_panel(
                marks, x_scale, label=f"{told}; against the merge ratio", **options
            )
            by_ratio.append(Figure(measure.label, measure.unit, measure.what, note, svg))
        if others:
            marks = [
                _mark(row, curve, None, place, 0)
                for place, row in enumerate(others)
                if curve.value[row.index] is not None
            ]
            names = [f"{row.rank} {row.name}" for row in others]
            svg = figures.rank_panel(marks, names, label=f"{told}; by rank", **options)
            by_rank.append(Figure(measure.label, measure.unit, measure.what, note, svg))
    entries = [(figures.swatch(line), label) for line, label in enumerate(lines) if label]
    flags: dict[str, bool] = dict(
        tied=any(row.tied for row in rows[1:]),
        accurate=most_accurate is not None,
        intervals=any(ends[0] is not None for curve in curves for ends in curve.ends),
    )
    groups = []
    if by_ratio:
        axis_name = "merge ratio (0 = first endpoint, 1 = second)"
        groups.append(Group("", axis_name, entries, by_ratio, **flags))
    if by_rank:
        heading = "Candidates without a merge ratio" if by_ratio else ""
        axis_name = "one row per candidate, best on top; numbers are ranks"
        groups.append(Group(heading, axis_name, [], by_rank, **flags))
    return groups


def _mark(row: Row, curve: Curve, x: float | None, place: int | None, line: int) -> Mark:
    """A candidate's mark: at (ratio, value), or at (value, row) when `place` is the row."""
    value, ends = curve.value[row.index] or 0.0, curve.ends[row.index]
    said = _said(row, curve.measure, value, ends)
    where = (value, float(place)) if place is not None else (x or 0.0, value)
    return Mark(row.index, *where, *ends, said, row.tied, line)


def _said(row: Row, measure: Measure, value: float, ends: Ends) -> str:
    interval = interval_text(measure, ends)
    tail = f" (95%: {interval})" if interval else ""
    return f"{row.name}: {with_unit(measure, value)}{tail}"
