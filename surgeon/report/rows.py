"""A ranking as the page shows it: what each score is called, candidates' values, table cells.

Values are kept in the unit shown (accuracy in %), so that tables and charts agree.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from surgeon.ranking import Interval, RankedCandidate, Ranking
from surgeon.report.reading import TraceReading
from surgeon.report.words import DASH, grouped, signed

NO_INTERVAL: Interval = (None, None)


class Measure(NamedTuple):
    """How a score is called and written."""

    label: str
    unit: str
    decimals: int
    what: str
    scale: float = 1.0


ACCURACY = Measure("Accuracy", "%", 1, "share of the task's problems answered right", 100)

EVIDENCE: dict[str, Measure] = {
    "cycles": Measure("Cycles", "per response", 2, "an exploring stretch and what follows it"),
    "gated_cycles": Measure(
        "Cycles counted", "per response", 2, "strong enough, and with new neurons"
    ),
    "without_evidence": Measure("No evidence", "% of responses", 1, "no weighted mass", 100),
    "kept_mass": Measure("Mass kept", "%", 2, "share of activation mass kept by the top-k", 100),
    "tokens": Measure("Tokens", "per response", 1, "truncated responses included"),
    "truncated": Measure("Truncated", "% of responses", 1, "cut at the token limit", 100),
    "saturation": Measure("NEX, stretched", "−log₁₀(1 − NEX)", 2, "tells scores near 1 apart"),
    "reward": Measure("Reward", "", 3, "NEX Eq. 15"),
    "bad": Measure("Bad", "", 3, "NEX Eq. 16"),
}
"""What stands behind the scores: fields of a candidate."""
TOTALS = {"without_evidence", "tokens", "truncated"}
"""The fields that are sums over the responses."""


class Cell(NamedTuple):
    """A number in a table, its interval, and whether its column prefers this row."""

    shown: str
    sort: str
    interval: str = ""
    favourite: bool = False


class CandidateRow(NamedTuple):
    """One candidate, ready to be shown; `value` and `interval` are in the unit shown."""

    index: int
    rank: int
    name: str
    checkpoint: str
    digest: str
    method: str
    """Empty for an endpoint."""
    ratio: float | None
    tied: bool
    """It is the best, or can't be told apart from it."""
    value: dict[str, float | None]
    interval: dict[str, Interval]
    evidence: dict[str, float | None]


class RankingPage(NamedTuple):
    """What the panels of a ranking's page are drawn from."""

    ranking: Ranking
    rows: list[CandidateRow]
    """The candidates, best first."""
    scores: dict[str, Measure]
    """The scores shown, in their order; accuracy first, where it is known."""
    favourites: dict[str, int]
    """Score -> place of the candidate it prefers."""
    reading: TraceReading | None
    """One response of the best candidate, read closely."""
    truth: Mapping[str, Any]
    """The evaluation that the accuracies come from; empty where they don't come from one."""
    lineage: Mapping[str, Any]
    """surgeon.json of the ranking."""

    @property
    def select(self) -> Measure:
        """The score that orders the candidates."""
        return self.scores[self.ranking.select]

    @property
    def most_accurate(self) -> int | None:
        return self.favourites.get("accuracy")

    def total(self, field: str) -> int:
        """A field of the candidates, summed."""
        return sum(getattr(candidate, field) for candidate in self.ranking.candidates)


def ranking_page(
    ranking: Ranking,
    measures: Mapping[str, Measure],
    reading: TraceReading | None = None,
    truth: Mapping[str, Any] | None = None,
    lineage: Mapping[str, Any] | None = None,
) -> RankingPage:
    """What the page shows; scores without a measure follow under their own names."""
    present = ranking.candidates[0].scores if ranking.candidates else {}
    order = dict.fromkeys([ranking.select, *measures, *present])
    scores = {
        score: measures.get(score) or Measure(score, "", 4, "")
        for score in order
        if score in present or score == ranking.select
    }
    if any(candidate.accuracy is not None for candidate in ranking.candidates):
        scores = {"accuracy": ACCURACY, **scores}
    rows = [_row(i, candidate, scores) for i, candidate in enumerate(ranking.candidates)]
    place = {row.name: row.index for row in rows}
    favourites = {
        score: place[name]
        for score, name in ranking.favourites.items()
        if name is not None and score in scores
    }
    known = [(v, -row.index) for row in rows if (v := row.value["accuracy"]) is not None]
    if known:
        favourites["accuracy"] = -max(known)[1]
    return RankingPage(ranking, rows, scores, favourites, reading, truth or {}, lineage or {})


def _row(index: int, candidate: RankedCandidate, scores: Mapping[str, Measure]) -> CandidateRow:
    return CandidateRow(
        index=index,
        rank=candidate.rank,
        name=candidate.name,
        checkpoint=candidate.checkpoint,
        digest=candidate.digest,
        method=candidate.method or "",
        ratio=candidate.ratio,
        tied=candidate.not_told_apart_from_best,
        value={
            **candidate.scores,
            "accuracy": None if candidate.accuracy is None else ACCURACY.scale * candidate.accuracy,
        },
        interval=dict(candidate.interval),
        evidence={
            field: None if value is None else measure.scale * value
            for field, measure in EVIDENCE.items()
            for value in [evidence_of(candidate, field)]
        },
    )


def evidence_of(candidate: RankedCandidate, field: str) -> float | None:
    """A field of `EVIDENCE`, sums as means over the responses."""
    value = getattr(candidate, field)
    return value / candidate.responses if field in TOTALS else value


def number(measure: Measure, value: float | None) -> str:
    return signed(value, measure.decimals, separator="," if (value or 0) >= 1e4 else "")


def with_unit(measure: Measure, value: float | None) -> str:
    shown = number(measure, value)
    if value is None or not measure.unit:
        return shown
    return f"{shown}%" if measure.unit.startswith("%") else f"{shown} {measure.unit}"


def interval_text(measure: Measure, ends: Interval) -> str:
    if ends[0] is None or ends[1] is None:
        return ""
    dash = " to " if ends[0] < 0 else DASH
    return f"{number(measure, ends[0])}{dash}{number(measure, ends[1])}"


def sort_key(value: float | None) -> str:
    """What a table's column is sorted by in the page; empty when there is nothing."""
    return "" if value is None else repr(value)


def score_cells(page: RankingPage, row: CandidateRow) -> list[Cell]:
    """A candidate's scores, in their order."""
    cells = []
    for score, measure in page.scores.items():
        value, ends = row.value[score], row.interval.get(score, NO_INTERVAL)
        favourite = page.favourites.get(score) == row.index
        shown = number(measure, value)
        cells.append(Cell(shown, sort_key(value), interval_text(measure, ends), favourite))
    return cells


def count_cells(candidate: RankedCandidate) -> list[Cell]:
    """The table's last columns: how much stands behind the scores."""
    counts = (candidate.responses, candidate.truncated, candidate.tokens)
    return [
        *(Cell(grouped(count), sort_key(float(count))) for count in counts),
        Cell(grouped(candidate.cycles, 1), sort_key(candidate.cycles)),
        Cell(grouped(candidate.without_evidence), sort_key(float(candidate.without_evidence))),
        Cell(f"{signed(100 * candidate.kept_mass, 1)}%", sort_key(candidate.kept_mass)),
    ]


def span_text(values: Iterable[float], decimals: int = 1) -> str:
    """`1.1 to 4.1`, or one number where both ends are written alike."""
    known = list(values)
    low, high = (f"{end:.{decimals}f}" for end in (min(known), max(known)))
    return low if low == high else f"{low} to {high}"
