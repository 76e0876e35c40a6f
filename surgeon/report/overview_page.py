"""The page over everything that was made of a family."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from surgeon.lineage import write_text
from surgeon.report import figures
from surgeon.report.figures import Chart, Dot
from surgeon.report.page import filled


class PlottedPoint(NamedTuple):
    """One checkpoint in one chart."""

    name: str
    series: int
    made_by: str
    tokens: float
    value: float
    """In [0, 1]."""
    low: float | None
    high: float | None
    place: str
    on_front: bool


class Tree(NamedTuple):
    """Something, and what it was made of."""

    role: str
    place: str
    command: str
    digest: str
    inputs: list["Tree"]


class OverviewPage(NamedTuple):
    """What the page shows."""

    headline: str
    verbs: Sequence[str]
    """How checkpoints were made, a sign each."""
    charts: Sequence[tuple[str, str, list[PlottedPoint]]]
    """(questions, `accuracy`, `estimate` or `agreement`, points, the best first)."""
    made: Sequence[tuple[str, str, str, str]]
    """(place, kind, what it says, command)."""
    trees: Sequence[Tree]


def chart_of(kind: str, title: str, points: Sequence[PlottedPoint], first: int) -> Chart:
    """Accuracy in % against tokens; the line joins those that no other beats. `first` is the number
    of the first mark on the page, by which chart and table are linked."""
    dots = [
        Dot(
            first + n, p.tokens, 100 * p.value,
            None if p.low is None else 100 * p.low, None if p.high is None else 100 * p.high,
            f"{p.name}: {100 * p.value:.1f}%, {p.tokens:.0f} tokens; {p.made_by}", p.on_front,
            p.series,
        )
        for n, p in enumerate(points)
    ]  # fmt: skip
    front = sorted((n for n, p in enumerate(points) if p.on_front), key=lambda n: points[n].tokens)
    return figures.front_chart(dots, front, label=f"{kind} against tokens, {title}")


def write_overview(file: Path, page: OverviewPage) -> None:
    """Write the page; equal values give equal pages."""
    charts, first = [], 0
    for title, kind, points in page.charts:
        charts.append((title, kind, points, chart_of(kind, title, points, first), first))
        first += len(points)
    write_text(
        file,
        filled(
            "overview.html.j2", "page.css", "heat.css", "overview.css", page=page, charts=charts
        ),
    )
