"""Which charts the page has: every score, all evidence, and each score against accuracy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from surgeon.ranking import Interval, RankedCandidate
from surgeon.report import figures
from surgeon.report.figures import Chart, Dot
from surgeon.report.measures import (
    EVIDENCE,
    NO_INTERVAL,
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
    chart: Chart


class Group(NamedTuple):
    """Panels that share an axis, the axis' name, and the legend of their lines and signs."""

    heading: str
    axis: str
    legend: list[tuple[int, str]]
    """(series, label) of the lines."""
    figures: list[Figure]
    tied: bool
    accurate: bool
    intervals: bool


class Quantity(NamedTuple):
    """One quantity of all candidates; both lists follow the ranking's order."""

    measure: Measure
    value: Sequence[float | None]
    ends: Sequence[Interval]
    favourite: int | None = None
    """Place of the candidate with the highest value."""
    verb: str = "prefers"


def score_groups(page: RankingPage) -> list[Group]:
    """Every score against the ratio; by rank for the candidates without one."""
    curves = [
        Quantity(
            measure,
            page.values(score),
            [candidate.interval.get(score, NO_INTERVAL) for candidate in page.candidates],
            page.favourites.get(score),
            "highest at" if score == "accuracy" else "prefers",
        )
        for score, measure in page.scores.items()
    ]
    return _groups(page, curves, page.favourites.get("accuracy"))


def evidence_groups(page: RankingPage) -> list[Group]:
    """What stands behind the scores, drawn like them; quantities nobody has are left out."""
    curves = []
    for measure, of in EVIDENCE:
        values = [of(candidate) for candidate in page.candidates]
        if any(value is not None for value in values):
            curves.append(Quantity(measure, values, [NO_INTERVAL] * len(values)))
    return _groups(page, curves, None)


def scatter_figures(page: RankingPage) -> list[Figure]:
    """Each score against accuracy, when at least three accuracies are known."""
    accuracy = page.values("accuracy")
    if sum(value is not None for value in accuracy) < 3:
        return []
    line_of: dict[int, int] = {}
    for line, members in enumerate(series(page).values()):
        for n in members:
            line_of.setdefault(n, line)
    scatters = []
    for score, measure in page.scores.items():
        if score == "accuracy":
            continue
        dots = []
        for n, (x, y) in enumerate(zip(page.values(score), accuracy, strict=True)):
            if x is not None and y is not None:
                label = f"{_label(page.candidates[n], measure, x)}, accuracy {signed(y, 1)}%"
                tied = page.candidates[n].not_told_apart_from_best
                dots.append(Dot(n, x, y, None, None, label, tied, line_of.get(n, 0)))
        quality = (page.ranking.selection_quality or {}).get(score)
        note = ""
        if quality is not None:
            r, regret = signed(quality.pearson, 2), signed(quality.regret_at_1, 1)
            note = f"r = {r}, regret {regret} pp"
        title = f"Accuracy in % against {measure.label}, {len(dots)} candidates; {note}"
        chart = figures.scatter_chart(dots, label=title, favourite=page.favourites.get(score))
        scatters.append(Figure(measure.label, measure.unit, note, chart))
    return scatters


def series(page: RankingPage) -> dict[str, list[int]]:
    """Lines of the ratio charts: label -> places of the candidates with a ratio.

    A line is a merge method; where a method has two candidates of one ratio, it is split by the
    directory they came from. A candidate without a method (an endpoint) belongs to every line.
    """
    placed = {n: c for n, c in enumerate(page.candidates) if c.ratio is not None}
    shared = [n for n, c in placed.items() if not c.method]
    lines: dict[str, list[int]] = {}
    for method in sorted({c.method for c in placed.values() if c.method}):
        members = {n: c for n, c in placed.items() if c.method == method}
        if len({c.ratio for c in members.values()}) == len(members):
            lines[method] = list(members)
            continue
        for n, c in members.items():
            family, member, _ = c.checkpoint.partition("#")
            source = family if member else str(Path(c.checkpoint).parent)
            lines.setdefault(f"{method}, {source}", []).append(n)
    if not lines:
        return {"": shared} if shared else {}
    return {label: [*members, *shared] for label, members in lines.items()}


class Across(NamedTuple):
    """What charts have on their horizontal axis."""

    axis: str
    against: str
    """In a chart's label."""
    lines: dict[str, list[int]]
    """Label -> places of the candidates on a line."""
    x: dict[int, float]
    """Place -> where the candidate is."""


def axes(page: RankingPage) -> list[Across]:
    """The axes that candidates have places on: the merge ratio, and the step of a training run."""
    candidates, found = page.candidates, []
    lines = series(page)
    if lines:
        ratio = {n: c.ratio for n, c in enumerate(candidates) if c.ratio is not None}
        axis_name = "merge ratio (0 = first endpoint, 1 = second)"
        found.append(Across(axis_name, "the merge ratio", lines, ratio))
    steps = {
        n: float(c.step) for n, c in enumerate(candidates) if c.ratio is None and c.step is not None
    }
    runs = list(dict.fromkeys(candidates[n].run for n in steps))
    if steps:
        names = [Path(run).name if len(runs) > 1 else "" for run in runs]
        if len(set(names)) < len(runs):
            names = runs
        members = [[n for n in steps if candidates[n].run == run] for run in runs]
        by_run = dict(zip(names, members, strict=True))
        found.append(Across("training step", "the training step", by_run, steps))
    return found


def _groups(
    page: RankingPage, curves: Sequence[Quantity], most_accurate: int | None
) -> list[Group]:
    """Charts against each axis, and charts by rank of the candidates that are on none."""
    candidates, across = page.candidates, axes(page)
    placed = {n for one in across for members in one.lines.values() for n in members}
    others = [n for n in range(len(candidates)) if n not in placed]
    names = [f"{candidates[n].rank} {candidates[n].name}" for n in others]
    scales = [figures.axis(one.x.values(), pad=0.03) for one in across]
    drawn: list[list[Figure]] = [[] for _ in across]
    by_rank: list[Figure] = []
    for curve in curves:
        measure, favourite = curve.measure, curve.favourite
        note = "" if any(value is not None for value in curve.value) else "no values"
        if favourite is not None:
            text = number(measure, curve.value[favourite])
            note = f"{curve.verb} {candidates[favourite].name}: {text}"
        title = f"{measure.label} {measure.unit}".strip() + (f"; {note}" if note else "")
        marks: dict[str, Any] = dict(favourite=favourite, most_accurate=most_accurate)
        for one, scale, into in zip(across, scales, drawn, strict=True):
            dots = [
                dot._replace(x=one.x[n], series=line)
                for line, members in enumerate(one.lines.values())
                for n in members
                if (dot := _dot(page, curve, n))
            ]
            label = f"{title}; against {one.against}"
            chart = figures.ratio_chart(dots, scale, label=label, **marks)
            into.append(Figure(measure.label, measure.unit, note, chart))
        if others:
            dots = [
                dot._replace(x=dot.y, y=float(row))
                for row, n in enumerate(others)
                if (dot := _dot(page, curve, n))
            ]
            chart = figures.rank_chart(dots, names, label=f"{title}; by rank", **marks)
            by_rank.append(Figure(measure.label, measure.unit, note, chart))
    flags: dict[str, bool] = dict(
        tied=any(c.not_told_apart_from_best for c in candidates[1:]),
        accurate=most_accurate is not None,
        intervals=any(ends[0] is not None for curve in curves for ends in curve.ends),
    )
    groups = []
    for n, (one, found) in enumerate(zip(across, drawn, strict=True)):
        entries = [(line, label) for line, label in enumerate(one.lines) if label]
        groups.append(Group("Training steps" if n else "", one.axis, entries, found, **flags))
    if by_rank:
        words = " or ".join(one.against.removeprefix("the ") for one in across)
        heading = f"Candidates without a {words}" if across else ""
        axis_name = "one row per candidate, best on top; numbers are ranks"
        groups.append(Group(heading, axis_name, [], by_rank, **flags))
    return groups


def _dot(page: RankingPage, curve: Quantity, n: int) -> Dot | None:
    """A candidate's mark at its value, None without one; the chart says where across it is."""
    value, ends = curve.value[n], curve.ends[n]
    if value is None:
        return None
    label = _label(page.candidates[n], curve.measure, value, ends)
    return Dot(n, 0.0, value, *ends, label, page.candidates[n].not_told_apart_from_best)


def _label(
    candidate: RankedCandidate, measure: Measure, value: float, ends: Interval = NO_INTERVAL
) -> str:
    interval = interval_text(measure, ends)
    tail = f" (95%: {interval})" if interval else ""
    return f"{candidate.name}: {with_unit(measure, value)}{tail}"


CURVES = ("recommended", "nex", "estimate", "agreement", "length")
"""The scores that are drawn against the number of prompts, besides the selected one."""


def curve_group(page: RankingPage) -> Group | None:
    """How scores depend on the number of prompts: a line a score, with the middle 90 % of the
    parts that were drawn."""
    curve = page.ranking.curve
    if curve is None:
        return None
    chosen = [page.ranking.select, *(name for name in CURVES if name != page.ranking.select)]
    lines = [name for name in chosen if any(row.score == name for row in curve.rows)][:5]
    x_scale = figures.axis([row.prompts for row in curve.rows], pad=0.03)
    drawn = []
    for field, title, unit, decimals in (
        ("regret", "Regret@1", "pp", 1), ("pearson", "Pearson r", "", 2),
        ("error", "Error of estimated accuracies", "", 3),
        ("order", "Order, against that by all prompts", "Spearman", 2),
        ("same", "Same pick as by all prompts", "% of the parts", 0),
    ):  # fmt: skip
        dots = []
        for row in curve.rows:
            value = getattr(row, field)
            if row.score not in lines or value is None:
                continue
            scale = 100 if field == "same" else 1
            low, high = row.spread.get(field, NO_INTERVAL)
            name = page.scores[row.score].label
            label = f"{name}, {row.prompts} prompts: {signed(scale * value, decimals)} {unit}"
            line = lines.index(row.score)
            y, place = scale * value, float(row.prompts)
            # No candidate's: the same score and size is marked in every chart.
            index = -1 - 5 * row.prompts - line
            dots.append(Dot(index, place, y, low, high, label.rstrip(), True, line))
        if dots:
            chart = figures.ratio_chart(
                dots, x_scale, label=f"{title}; against the number of prompts", favourite=None,
                most_accurate=None,
            )  # fmt: skip
            drawn.append(Figure(title, unit, "", chart))
    legend = [(n, page.scores[name].label) for n, name in enumerate(lines)]
    return Group("", "prompts", legend, drawn, tied=False, accurate=False, intervals=False)
