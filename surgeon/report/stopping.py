"""An early stop as a page: right answers against tokens, a chart per rule, all on one file."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from surgeon.report import figures
from surgeon.report.charts import Figure
from surgeon.report.figures import Dot
from surgeon.report.page import filled
from surgeon.report.words import signed

APART = 1000
"""Numbers between the dots of one rule and those of the next."""


class CurvePoint(NamedTuple):
    """One threshold of a rule."""

    tokens: float
    right: float
    """A share, as are the ends of its difference's interval."""
    label: str
    """The threshold in words."""
    chosen: bool


class StopsPage(NamedTuple):
    """What the page shows."""

    headline: str
    lines: Sequence[str]
    facts: Sequence[tuple[str, str, str]]
    """(term, value, note)"""
    warnings: Sequence[str]
    head: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[str]]]
    """(rule, what it is, the table's other cells)"""
    curves: Mapping[str, Sequence[CurvePoint]]
    """Rule -> its points; `never` has one, `random` is drawn into every chart."""
    measured: str
    """What is counted as right, as an axis is named."""
    where: str
    """The questions of the curves."""


def stops_page(page: StopsPage) -> str:
    """The text of the page."""
    return filled("stopping.html.j2", "page.css", page=page, panels=panels(page))


def panels(page: StopsPage) -> list[Figure]:
    """A chart per rule: its curve, random's beside it, and where nothing is stopped."""
    every = [point for points in page.curves.values() for point in points]
    scale = figures.axis([point.tokens for point in every], pad=0.03)
    plain = [_dot(-1, "never", point, 2) for point in page.curves.get("never", ())]
    drawn = []
    for n, (rule, points) in enumerate(page.curves.items()):
        if rule == "never" or not points:
            continue
        dots = [_dot(n * APART + i, rule, point, 0) for i, point in enumerate(points)]
        beside = [] if rule == "random" else page.curves.get("random", ())
        dots += [_dot(-2 - i, "random", point, 1) for i, point in enumerate(beside)]
        favourite = next((d.index for d, p in zip(dots, points, strict=False) if p.chosen), None)
        note = next((f"chosen: {p.label}" for p in points if p.chosen), "none chosen")
        chart = figures.ratio_chart(
            [*dots, *plain], scale, label=f"{page.measured} against tokens: {rule}; {note}",
            favourite=favourite, most_accurate=-1,
        )  # fmt: skip
        drawn.append(Figure(rule, page.measured, note, chart))
    return drawn


def _dot(index: int, rule: str, point: CurvePoint, series: int) -> Dot:
    label = f"{rule} {point.label}".strip()
    right = 100 * point.right
    text = f"{label}: {signed(right, 1)}% at {point.tokens:,.0f} tokens"
    return Dot(index, point.tokens, right, None, None, text, point.chosen, series)
