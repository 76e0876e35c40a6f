"""A ranking as the page shows it: what its scores and its evidence are called, and table cells.

Accuracy and other shares are shown in %, so tables and charts agree.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from surgeon.ranking import Interval, RankedCandidate, Ranking
from surgeon.report.reading import TraceReading
from surgeon.report.words import DASH, grouped, signed
from surgeon.truth import Evaluation

NO_INTERVAL: Interval = (None, None)


class Measure(NamedTuple):
    """How a quantity is called and written."""

    label: str
    unit: str
    decimals: int
    what: str
    """In a few words."""


ACCURACY = Measure("Accuracy", "%", 1, "share of the task's problems answered right")

EVIDENCE: tuple[tuple[Measure, Callable[[RankedCandidate], float | None]], ...] = (
    (
        Measure("Cycles", "per response", 2, "an exploring stretch and what follows it"),
        lambda c: c.cycles,
    ),
    (
        Measure("Cycles counted", "per response", 2, "strong enough, and with new neurons"),
        lambda c: c.gated_cycles,
    ),
    (
        Measure("No evidence", "% of responses", 1, "no weighted mass"),
        lambda c: 100 * c.without_evidence / c.responses,
    ),
    (
        Measure("Mass kept", "%", 2, "share of activation mass kept by the top-k"),
        lambda c: 100 * c.kept_mass,
    ),
    (
        Measure("Tokens", "per response", 1, "truncated responses included"),
        lambda c: c.tokens / c.responses,
    ),
    (
        Measure("Truncated", "% of responses", 1, "cut at the token limit"),
        lambda c: 100 * c.truncated / c.responses,
    ),
    (
        Measure("NEX, stretched", "−log₁₀(1 − NEX)", 2, "tells scores near 1 apart"),
        lambda c: c.saturation,
    ),
    (Measure("Reward", "", 3, "NEX Eq. 15"), lambda c: c.reward),
    (Measure("Bad", "", 3, "NEX Eq. 16"), lambda c: c.bad),
)
"""What stands behind the scores, and its value for a candidate."""


class Cell(NamedTuple):
    """A number in a table, its interval, and whether its column prefers this row."""

    text: str
    sort: str
    interval: str = ""
    favourite: bool = False


class RankingPage(NamedTuple):
    """What the panels of a ranking's page are drawn from."""

    ranking: Ranking
    scores: dict[str, Measure]
    """The scores shown, in their order; accuracy first, where it is known."""
    favourites: dict[str, int]
    """Score -> place of the candidate it prefers, 0 for the best."""
    reading: TraceReading | None
    """One response of the best candidate, read closely."""
    truth: Evaluation | None
    """Where the accuracies come from, unless that was a bare table."""
    lineage: Mapping[str, Any]
    """surgeon.json of the ranking."""

    @property
    def candidates(self) -> tuple[RankedCandidate, ...]:
        """Best first."""
        return self.ranking.candidates

    @property
    def select(self) -> Measure:
        """The score that orders the candidates."""
        return self.scores[self.ranking.select]

    def values(self, score: str) -> list[float | None]:
        """A score of every candidate, as it is shown."""
        return [value_of(candidate, score) for candidate in self.candidates]

    def total(self, field: str) -> int:
        """A field of the candidates, summed."""
        return sum(getattr(candidate, field) for candidate in self.candidates)


def value_of(candidate: RankedCandidate, score: str) -> float | None:
    """A score of a candidate, as it is shown: accuracy in %."""
    if score != "accuracy":
        return candidate.scores[score]
    return None if candidate.accuracy is None else 100 * candidate.accuracy


def ranking_page(
    ranking: Ranking,
    measures: Mapping[str, Measure],
    reading: TraceReading | None = None,
    truth: Evaluation | None = None,
    lineage: Mapping[str, Any] | None = None,
) -> RankingPage:
    """What the page shows; scores without a measure follow under their own names."""
    present = ranking.favourites
    scores = {
        score: measures.get(score, Measure(score, "", 4, ""))
        for score in dict.fromkeys([ranking.select, *measures, *present])
        if score in present
    }
    place = {candidate.name: n for n, candidate in enumerate(ranking.candidates)}
    favourites = {s: place[name] for s, name in present.items() if name is not None}
    accuracy = {n: a for n, c in enumerate(ranking.candidates) if (a := c.accuracy) is not None}
    if accuracy:
        scores = {"accuracy": ACCURACY, **scores}
        favourites["accuracy"] = max(accuracy, key=accuracy.__getitem__)
    return RankingPage(ranking, scores, favourites, reading, truth, lineage or {})


def number(measure: Measure, value: float | None) -> str:
    return signed(value, measure.decimals, separator="," if (value or 0) >= 1e4 else "")


def with_unit(measure: Measure, value: float | None) -> str:
    text = number(measure, value)
    if value is None or not measure.unit:
        return text
    return f"{text}%" if measure.unit.startswith("%") else f"{text} {measure.unit}"


def interval_text(measure: Measure, ends: Interval) -> str:
    if ends[0] is None or ends[1] is None:
        return ""
    dash = " to " if ends[0] < 0 else DASH
    return f"{number(measure, ends[0])}{dash}{number(measure, ends[1])}"


def sort_key(value: float | None) -> str:
    """What a table's column is sorted by in the page; empty when there is nothing."""
    return "" if value is None else repr(value)


def score_cells(page: RankingPage, place: int) -> list[Cell]:
    """A candidate's scores, in their order."""
    candidate, cells = page.candidates[place], []
    for score, measure in page.scores.items():
        value, ends = value_of(candidate, score), candidate.interval.get(score, NO_INTERVAL)
        favourite = page.favourites.get(score) == place
        text = number(measure, value)
        cells.append(Cell(text, sort_key(value), interval_text(measure, ends), favourite))
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
    every = list(values)
    low, high = (f"{end:.{decimals}f}" for end in (min(every), max(every)))
    return low if low == high else f"{low} to {high}"
