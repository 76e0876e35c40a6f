"""Which charts the page has: every score, all evidence, and each score against accuracy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from surgeon.ranking import Interval
from surgeon.report import figures
from surgeon.report.figures import Dot
from surgeon.report.rows import (
    EVIDENCE,
    NO_INTERVAL,
    CandidateRow,
    Measure,
    RankingPage,
    interval_text,
    number,
    with_unit,
)
from surgeon.report.words import signed


class Figure(NamedTuple):
    """One panel of a group of small charts."""

    title: str
    unit: str
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
    ends: Sequence[Interval]


def score_groups(page: RankingPage) -> list[Group]:
    """Every score against the ratio; by rank for the candidates without one."""
    curves = [
        Curve(
            score,
            measure,
            [row.value[score] for row in page.rows],
            [row.interval.get(score, NO_INTERVAL) for row in page.rows],
        )
        for score, measure in page.scores.items()
    ]
    return _groups(page.rows, curves, page.favourites, page.most_accurate)


def evidence_groups(page: RankingPage) -> list[Group]:
    """What stands behind the scores, drawn like them; quantities nobody has are left out."""
    curves = [
        Curve(
            field,
            measure,
            [row.evidence[field] for row in page.rows],
            [NO_INTERVAL] * len(page.rows),
        )
        for field, measure in EVIDENCE.items()
        if any(row.evidence[field] is not None for row in page.rows)
    ]
    return _groups(page.rows, curves, {}, None)


def scatter_figures(page: RankingPage) -> list[Figure]:
    """Each score against accuracy, when at least three accuracies are known."""
    rows = page.rows
    if sum(row.value["accuracy"] is not None for row in rows) < 3:
        return []
    lines = [{row.index for row in line} for line in series(rows).values()]
    drawn = []
    for score, measure in page.scores.items():
        if score == "accuracy":
            continue
        marks = []
        for row in rows:
            x, y = row.value[score], row.value["accuracy"]
            if x is not None and y is not None:
                label = f"{_label(row, measure, x, NO_INTERVAL)}, accuracy {signed(y, 1)}%"
                line = next((i for i, members in enumerate(lines) if row.index in members), 0)
                marks.append(Dot(row.index, x, y, None, None, label, row.tied, line))
        quality = (page.ranking.selection_quality or {}).get(score)
        note = ""
        if quality is not None:
            r, regret = signed(quality.pearson, 2), signed(quality.regret_at_1, 1)
            note = f"r = {r}, regret {regret} pp"
        told = f"Accuracy in % against {measure.label}, {len(marks)} candidates; {note}"
        svg = figures.scatter_panel(marks, label=told, favourite=page.favourites.get(score))
        drawn.append(Figure(measure.label, measure.unit, note, svg))
    return drawn


def series(rows: Sequence[CandidateRow]) -> dict[str, list[CandidateRow]]:
    """Lines of the ratio charts: label -> candidates with a ratio.

    A line is a merge method; where a method has two candidates of one ratio, it is split by the
    directory they came from. A candidate without a method (an endpoint) belongs to every line.
    """
    placed = [row for row in rows if row.ratio is not None]
    shared = [row for row in placed if not row.method]
    lines: dict[str, list[CandidateRow]] = {}
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
    rows: Sequence[CandidateRow],
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
            by_ratio.append(Figure(measure.label, measure.unit, note, svg))
        if others:
            marks = [
                _mark(row, curve, None, place, 0)
                for place, row in enumerate(others)
                if curve.value[row.index] is not None
            ]
            names = [f"{row.rank} {row.name}" for row in others]
            svg = figures.rank_panel(marks, names, label=f"{told}; by rank", **options)
            by_rank.append(Figure(measure.label, measure.unit, note, svg))
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


def _mark(row: CandidateRow, curve: Curve, x: float | None, place: int | None, line: int) -> Dot:
    """A candidate's mark: at (ratio, value), or at (value, row) when `place` is the row."""
    value, ends = curve.value[row.index] or 0.0, curve.ends[row.index]
    label = _label(row, curve.measure, value, ends)
    where = (value, float(place)) if place is not None else (x or 0.0, value)
    return Dot(row.index, *where, *ends, label, row.tied, line)


def _label(row: CandidateRow, measure: Measure, value: float, ends: Interval) -> str:
    interval = interval_text(measure, ends)
    tail = f" (95%: {interval})" if interval else ""
    return f"{row.name}: {with_unit(measure, value)}{tail}"
