"""`surgeon report`: one page over everything that was made of a family.

gathered_runs.py  what lies in the directories that were named
fronts.py         who isn't beaten in accuracy and tokens at once

The page is report/overview_page.py.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from surgeon import artifact, lineage
from surgeon.artifact import part
from surgeon.console import announce, console, say, table
from surgeon.errors import BadInput
from surgeon.overview.fronts import front
from surgeon.overview.gathered_runs import Comparison, Made, Point, gathered
from surgeon.report.overview_page import OverviewPage, PlottedPoint, Tree, write_overview
from surgeon.settings import verb
from surgeon.settings.report import ReportSettings
from surgeon.show import Origin

__all__ = ["Comparison", "Made", "Overview", "Point", "report", "show"]

PAGE = "report.html"
SAID = {
    "accuracy": "the most accurate",
    "agreement": "the one whose answers agree most",
    "estimate": "by votes the most accurate",
}
"""What is said of the highest value."""


@part
class MeasuredPoints:
    """The checkpoints on one task, or by the votes on one mini-set."""

    title: str
    kind: str
    """`accuracy`; `estimate` where votes stand for labels; `agreement` where right is what most of
    a checkpoint's own answers say."""
    points: tuple[Point, ...]
    """The best first."""
    front: tuple[str, ...]
    """Names of those that no other beats, by tokens."""


@artifact.artifact("overview.json")
class Overview:
    """Everything that was made of a family."""

    comparisons: tuple[MeasuredPoints, ...]
    made: tuple[Made, ...]
    out: Annotated[Path, Field(exclude=True)] = Path()
    already: artifact.Already = False


@verb(ReportSettings)
def report(settings: ReportSettings) -> Overview:
    """Read what lies in the directories, and write a page over all of it.

    Raises `BadInput` where nothing in them was written by surgeon, or a file is damaged.
    """
    found = gathered(settings.runs)
    if not found.files:
        raise BadInput(
            f"found nothing that surgeon wrote in {', '.join(settings.runs)}, expected directories "
            "of rankings, evaluations, transplants, ..."
        )
    inputs = {name: lineage.file_digest(file) for name, file in found.files.items()}

    def work(directory: Path) -> Overview:
        made = Overview(
            comparisons=tuple(
                MeasuredPoints(
                    title=c.title,
                    kind=c.kind,
                    points=tuple(sorted(c.points, key=lambda p: (-p.value, p.tokens))),
                    front=tuple(c.points[n].name for n in front([(p.tokens, p.value)
                                                                 for p in c.points])),
                )
                for c in found.comparisons
            ),
            made=tuple(found.made),
        )  # fmt: skip
        write_overview(directory / PAGE, page_of(made))
        return made

    return artifact.once(settings.out, Overview, work, run=lineage.Run("report", {}, inputs))


def page_of(found: Overview) -> OverviewPage:
    """What the page shows."""
    verbs = list(dict.fromkeys(p.made_by for c in found.comparisons for p in c.points))
    charts = [
        (
            c.title,
            c.kind,
            [
                PlottedPoint(p.name, verbs.index(p.made_by), p.made_by, p.tokens, p.value, p.low,
                             p.high, p.place, p.name in c.front)
                for p in c.points
            ],
        )
        for c in found.comparisons
    ]  # fmt: skip
    return OverviewPage(
        headline=headline(found),
        verbs=verbs,
        charts=charts,
        made=[(m.place, m.kind, m.says, m.command or "") for m in found.made],
        trees=[_tree(m.lineage) for m in found.made if m.lineage.inputs],
    )


def _tree(origin: Origin) -> Tree:
    return Tree(
        origin.role,
        origin.place or "not found here",
        "" if origin.repeated else (origin.command or origin.verb or ""),
        (origin.digest or "")[7:19],
        [_tree(below) for below in origin.inputs],
    )


def headline(found: Overview) -> str:
    """One sentence: how much is here, and who is the most accurate."""
    for comparison in found.comparisons:
        best = comparison.points[0]
        what = SAID[comparison.kind]
        ends = ""
        if best.low is not None and best.high is not None:
            ends = f" (95%: {100 * best.low:.1f} to {100 * best.high:.1f})"
        others = [p for p in comparison.points if p.recommended and p.name != best.name]
        also = "".join(
            f" {p.source} recommends {p.name} ({100 * p.value:.1f}%): NEX counts there too."
            for p in others
        )
        return (
            f"{best.name} is {what} of {len(comparison.points)} on {comparison.title}: "
            f"{100 * best.value:.1f}%{ends}, {best.tokens:.0f} tokens an answer.{also}"
        )
    return f"{len(found.made)} results; none of them says how accurate a checkpoint is."


def show(found: Overview) -> None:
    """Print who is on the front of each comparison."""
    announce(found.already, "This report")
    say(headline(found), style="bold")
    for comparison in found.comparisons:
        say(f"{comparison.title}: {comparison.kind} against tokens, the front of "
            f"{len(comparison.points)}")  # fmt: skip
        rows = table("checkpoint", "made by", comparison.kind, "95%", "tokens", left=["made by"])
        for p in comparison.points:
            if p.name in comparison.front:
                ends = "" if p.low is None or p.high is None else f"{p.low:.3f} … {p.high:.3f}"
                rows.add_row(p.name, p.made_by, f"{p.value:.3f}", ends, f"{p.tokens:.0f}")
        console().print(rows)
    say(f"Page: {found.out / PAGE}")
