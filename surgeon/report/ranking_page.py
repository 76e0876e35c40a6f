"""`report.html`: a ranking as one self-contained page that opens offline."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgeon.lineage import write_text
from surgeon.ranking import Ranking, Recommendation
from surgeon.report import panels
from surgeon.report.measures import (
    Measure,
    RankingPage,
    interval_text,
    ranking_page,
    with_unit,
)
from surgeon.report.page import filled
from surgeon.report.reading import TraceReading
from surgeon.report.words import grouped
from surgeon.truth import Evaluation

TIES_NAMED = 4
"""Candidates that can't be told apart from the best are named up to this many."""


def write_report(
    out: Path,
    ranking: Ranking,
    measures: Mapping[str, Measure],
    reading: TraceReading | None = None,
    truth: Evaluation | None = None,
    lineage: Mapping[str, Any] | None = None,
) -> Path:
    """Write `report.html` into the directory `out`; arguments as for `render`."""
    path = out / "report.html"
    write_text(path, render(ranking, measures, reading, truth, lineage))
    return path


def render(
    ranking: Ranking,
    measures: Mapping[str, Measure],
    reading: TraceReading | None = None,
    truth: Evaluation | None = None,
    lineage: Mapping[str, Any] | None = None,
) -> str:
    """The page as text; equal arguments give equal pages.

    `measures` says how scores are called and written, in the order they are shown; `reading` is one
    response read closely, `truth` the evaluation behind the accuracies, `lineage` the
    content of surgeon.json.
    """
    page = ranking_page(ranking, measures, reading, truth, lineage)
    bodies = [
        (name, panel, body)
        for name, panel in panels.rows_for(ranking.panels).items()
        if (body := panel(page)) is not None
    ]
    return filled(
        "ranking.html.j2",
        "page.css",
        page=page,
        facts=_facts(page),
        preferences=_preferences(page),
        panels=bodies,
    )


def _facts(page: RankingPage) -> list[tuple[str, str, str]]:
    """(term, value, note) of what was ranked, on what, by what."""
    measure, select, (best, *others) = page.select, page.ranking.select, page.candidates
    value = with_unit(measure, best.scores[select])
    ends = interval_text(measure, best.interval[select])
    facts = [
        *_advice(page.ranking.recommendation),
        ("candidates", grouped(len(page.candidates)), ""),
        ("ranked by", measure.label, measure.what),
    ]
    if page.ranking.pick is None:
        facts.append(("best", "none", "the score tells nobody apart"))
    else:
        facts.append(("best", best.name, f"{value} ({ends})" if ends else value))
    if others and page.ranking.pick is not None:
        ties = [candidate.name for candidate in others if candidate.not_told_apart_from_best]
        more = len(ties) - TIES_NAMED
        names = ", ".join(ties[:TIES_NAMED]) + (f" and {more} more" if more > 0 else "")
        facts.append(("not told apart from it", str(len(ties)), names))
    responses, truncated = page.total("responses"), page.total("truncated")
    share = f"{100 * truncated / responses:.1f}%"
    mini_set = page.ranking.mini_set
    return [
        *facts,
        ("mini-set", f"{grouped(mini_set.prompts)} prompts", mini_set.path),
        (
            "responses",
            grouped(responses),
            f"{grouped(truncated)} truncated, {share}; {grouped(page.total('tokens'))} tokens",
        ),
    ]


def _advice(advice: Recommendation | None) -> list[tuple[str, str, str]]:
    """What is recommended, and what NEX alone would have picked."""
    if advice is None:
        return []
    (low, high), about = advice.interval, "accuracy unknown"
    if advice.estimate is not None and low is not None and high is not None:
        ends = f"{100 * low:.0f} to {100 * high:.0f}%"
        about = f"estimated accuracy {100 * advice.estimate:.0f}% (95%: {ends})"
    agrees = "the same" if advice.nex_alone == advice.name else "they disagree"
    if advice.nex_alone is None:
        agrees = "it tells nobody apart"
    return [
        ("recommended", advice.name, f"{about}; {advice.tokens:.0f} tokens per answer"),
        ("NEX alone", advice.nex_alone or "none", agrees),
    ]


def _preferences(page: RankingPage) -> list[tuple[int, str, str]]:
    """(place, candidate, the scores that prefer it), in rank order."""
    labels: dict[int, list[str]] = {}
    for score, measure in page.scores.items():
        if score in page.favourites and score != "accuracy":
            labels.setdefault(page.favourites[score], []).append(measure.label)
    return [(n, page.candidates[n].name, ", ".join(labels[n])) for n in sorted(labels)]
