"""A page of heat maps: a cell for each layer and block, one map for each measure."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from surgeon.lineage import write_text
from surgeon.report.page import filled
from surgeon.report.words import DASH

LEVELS = 9
"""Steps of colour; 0 is none."""
NOTHING = 1e-9
"""A distance that is rounding."""


class HeatPage(NamedTuple):
    """What the page shows, in words and numbers."""

    names: tuple[str, str]
    headline: str
    meaning: Sequence[str]
    beside: Sequence[str]
    layers: Sequence[int]
    columns: Sequence[str]
    maps: Mapping[str, Sequence[Sequence[float | None]]]
    """Measure -> a row for each layer, a value for each column."""
    outside: Sequence[tuple[str, ...]]
    """Blocks outside the layers, as cells of a table."""
    kinds: Sequence[tuple[str, ...]]
    units: Sequence[tuple[str, ...]]
    apart: Sequence[str]
    facts: Sequence[tuple[str, str, str]]


class HeatMeasure(NamedTuple):
    """How one measure is drawn."""

    title: str
    what: str
    percent: bool
    from_one: bool
    """Colour stands for the distance from 1, not from 0."""


MEASURES = {
    "relative": HeatMeasure("Moved", "norm of the difference, in % of the first's norm", True,
                            False),
    "cosine": HeatMeasure("Angle", "cosine between both; darker is further from 1", False, True),
    "equal": HeatMeasure("Equal", "% of the weights that are the same in every bit", True, False),
    "unmoved": HeatMeasure("Unmoved", "% of the weights that differ by at most 1e-5", True, False),
}  # fmt: skip


class HeatCell(NamedTuple):
    """One cell: its text and its colour."""

    text: str
    level: int
    title: str


def cells(name: str, page: HeatPage) -> list[list[HeatCell]]:
    """The cells of one map, a row for each layer; the darkest is the furthest of all."""
    measure, rows = MEASURES[name], page.maps[name]
    distance = [[_distance(measure, v) for v in row] for row in rows]
    most = max((d for row in distance for d in row if d is not None), default=0.0)
    drawn = []
    for layer, row, far in zip(page.layers, rows, distance, strict=True):
        line = []
        for column, value, d in zip(page.columns, row, far, strict=True):
            text = DASH if value is None else _text(measure, value)
            level = 0 if d is None or d <= NOTHING else math.ceil(LEVELS * d / most)
            line.append(HeatCell(text, level, f"layer {layer}, {column}: {text}"))
        drawn.append(line)
    return drawn


def _distance(measure: HeatMeasure, value: float | None) -> float | None:
    if value is None:
        return None
    return abs(1 - value) if measure.from_one else abs(value)


def _text(measure: HeatMeasure, value: float) -> str:
    if measure.percent:
        return f"{100 * value:.1f}" if value < 0.9995 else f"{100 * value:.0f}"
    return f"{value:.4f}"


def write_heat(file: Path, page: HeatPage) -> None:
    """Write the page; equal values give equal pages."""
    maps = [(name, MEASURES[name], cells(name, page)) for name in page.maps]
    write_text(file, filled("heat.html.j2", "page.css", "heat.css", page=page, maps=maps))
