"""Candidates as the page shows them: what each score is called, its values, its table cells.

Values are kept in the unit shown (accuracy in %), so that tables and charts agree.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from surgeon.report.words import DASH, finite, grouped, integer, signed

Json = Mapping[str, Any]
Ends = tuple[float | None, float | None]
"""The ends of a 95% interval; None where there is none."""


class Measure(NamedTuple):
    """How a score is called and written."""

    label: str
    unit: str
    decimals: int
    what: str
    scale: float = 1.0


MEASURES: dict[str, Measure] = {
    "accuracy": Measure("Accuracy", "%", 1, "share of the task's problems answered right", 100),
    "nex": Measure("NEX", "", 4, "Good-Mass Fraction: share of activation mass on useful neurons"),
    "agreement": Measure("Agreement", "", 3, "share of a prompt's samples that agree on an answer"),
    "finished": Measure("Finished", "", 3, "share of responses that ended before the token limit"),
    "length": Measure("Length", "tokens", 1, "mean response length"),
    "explore_segments": Measure("E segments", "per response", 2, "exploring stretches"),
    "hes": Measure("HES", "nats", 1, "sum of token entropies over a response"),
    "entropy_top20": Measure(
        "Top-20% entropy", "", 3, "share of rows in the pool's most uncertain"
    ),
    "logprob": Measure("Log-prob", "nats/token", 3, "mean log-probability of the sampled tokens"),
}
"""Scores in the order they are shown; others follow under their own names."""

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
"""What stands behind the scores, under the names of ranking.json; those present are shown."""
_TOTALS = {"without_evidence", "tokens", "truncated"}


class Cell(NamedTuple):
    """A number in a table, its interval, and whether its column prefers this row."""

    shown: str
    sort: str
    interval: str = ""
    favourite: bool = False


class Row(NamedTuple):
    """One candidate, ready to be shown; `value` and `interval` are in the unit shown."""

    index: int
    rank: int
    name: str
    checkpoint: str
    digest: str
    method: str
    ratio: float | None
    tied: bool
    value: dict[str, float | None]
    interval: dict[str, Ends]
    evidence: dict[str, float | None]


def measure_of(score: str) -> Measure:
    return MEASURES.get(score) or Measure(score, "", 4, "")


def read_row(index: int, candidate: Json, truth: Json | None) -> Row:
    known: dict[str, Any] = {**(candidate.get("scores") or {})}
    ends: dict[str, Any] = {**(candidate.get("interval") or {})}
    name = str(candidate.get("name") or candidate.get("checkpoint") or f"candidate {index + 1}")
    known["accuracy"] = candidate.get("accuracy")
    ends["accuracy"] = candidate.get("accuracy_interval")
    if finite(known["accuracy"]) is None:
        for measured in (truth or {}).get("candidates") or []:
            if measured.get("name") == candidate.get("name"):
                known["accuracy"] = measured.get("avg")
                ends["accuracy"] = (measured.get("interval") or {}).get("avg")

    def interval(score: str) -> Ends:
        pair = ends.get(score)
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            return None, None
        return _scaled(measure_of(score), pair[0]), _scaled(measure_of(score), pair[1])

    ratio = finite(candidate.get("ratio"))
    return Row(
        index=index,
        rank=integer(candidate.get("rank")) or index + 1,
        name=name,
        checkpoint=str(candidate.get("checkpoint") or ""),
        digest=str(candidate.get("digest") or ""),
        method=_method(candidate, name, ratio),
        ratio=ratio,
        tied=index == 0 or candidate.get("not_told_apart_from_best") is True,
        value={score: _scaled(measure_of(score), value) for score, value in known.items()},
        interval={score: interval(score) for score in known},
        evidence={
            key: _scaled(
                measure,
                per_response(candidate, key) if key in _TOTALS else candidate.get(key),
            )
            for key, measure in EVIDENCE.items()
        },
    )


def _scaled(measure: Measure, value: Any) -> float | None:
    number = finite(value)
    return None if number is None else number * measure.scale


def _method(candidate: Json, name: str, ratio: float | None) -> str:
    """The merge method, as given or as the name says it: slerp-0.45 at ratio 0.45."""
    if candidate.get("method"):
        return str(candidate["method"])
    found = re.fullmatch(r"(.*[^\W\d].*?)-(\d+(?:\.\d+)?)", name, re.DOTALL)
    if found and ratio is not None and abs(float(found[2]) - ratio) < 1e-6:
        return found[1]
    return ""


def per_response(candidate: Json, key: str) -> float | None:
    total, responses = finite(candidate.get(key)), finite(candidate.get("responses"))
    return total / responses if total is not None and responses else None


def shown_scores(ranking: Json, rows: Sequence[Row]) -> list[str]:
    """Scores to show: accuracy where known, the one ranked by, then the order of `MEASURES`."""
    present = {score for row in rows for score in row.value if score != "accuracy"}
    select = str(ranking.get("select", "nex"))
    order = [select, *MEASURES, *sorted(present)]
    shown = list(dict.fromkeys(score for score in order if score in present))
    known = any(row.value["accuracy"] is not None for row in rows)
    return ["accuracy", *shown] if known else shown


def find_favourites(ranking: Json, rows: Sequence[Row], scores: Sequence[str]) -> dict[str, int]:
    """score -> index of the candidate it prefers: as given, else the one with the largest value."""
    given = {**(ranking.get("favourites") or {})}
    of_name: dict[str, int] = {}
    for row in rows:
        of_name.setdefault(row.name, row.index)
    found: dict[str, int] = {}
    for score in scores:
        if score in given:
            if given[score] in of_name:
                found[score] = of_name[given[score]]
            continue
        known = [(row.value[score], -row.index) for row in rows if row.value.get(score) is not None]
        if known:
            found[score] = -max(known)[1]
    return found


def find_most_accurate(rows: Sequence[Row]) -> int | None:
    known = [(v, -row.index) for row in rows if (v := row.value["accuracy"]) is not None]
    return -max(known)[1] if known else None


def number(measure: Measure, value: float | None) -> str:
    return signed(value, measure.decimals, separator="," if (value or 0) >= 1e4 else "")


def with_unit(measure: Measure, value: float | None) -> str:
    shown = number(measure, value)
    if value is None or not measure.unit:
        return shown
    return f"{shown}%" if measure.unit.startswith("%") else f"{shown} {measure.unit}"


def interval_text(measure: Measure, ends: Ends) -> str:
    if ends[0] is None or ends[1] is None:
        return ""
    dash = " to " if ends[0] < 0 else DASH
    return f"{number(measure, ends[0])}{dash}{number(measure, ends[1])}"


def score_cells(row: Row, scores: Sequence[str], favourites: Mapping[str, int]) -> list[Cell]:
    cells = []
    for score in scores:
        measure, value = measure_of(score), row.value.get(score)
        ends = interval_text(measure, row.interval.get(score, (None, None)))
        cells.append(
            Cell(number(measure, value), sort_key(value), ends, favourites.get(score) == row.index)
        )
    return cells


def sort_key(value: float | None) -> str:
    """What a table's column is sorted by in the page; empty when there is nothing."""
    return "" if value is None else repr(value)


def count_cells(candidate: Json) -> list[Cell]:
    """The table's last columns: how much stands behind the scores."""
    cells = []
    for key in ("responses", "truncated", "tokens", "cycles", "without_evidence", "kept_mass"):
        value = finite(candidate.get(key))
        shown = grouped(value, 1 if key == "cycles" else 0)
        if key == "kept_mass" and value is not None:
            shown = f"{signed(100 * value, 1)}%"
        cells.append(Cell(shown, sort_key(value)))
    return cells
