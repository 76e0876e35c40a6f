"""How channels fluctuate where a checkpoint fails, as a page (NeuReasoner Fig. 2, lower part)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from surgeon.artifact import part
from surgeon.report import figures
from surgeon.report.figures import Chart, Dot
from surgeon.report.page import filled

Ends = list[float | None]
"""[value, low, high]; None where it isn't defined."""
SIDES = ("failing", "counterpart")


@part
class FeatureContrast:
    """A feature at the end of failing spans, and of their counterparts."""

    failing: Ends
    """Mean over the channels and problems, with its 95 % interval."""
    counterpart: Ends
    effect: Ends
    """Cohen's d, failing over counterpart."""
    auroc: Ends
    """The chance that a failing span has the higher value."""
    expected: int
    """1 where the paper says that failing spans have more of it, -1 where less."""

    @property
    def verdict(self) -> str:
        """Whether it moves as the paper says: `as the paper`, `the other way`, `not told apart`."""
        _, low, high = self.auroc
        if low is None or high is None or low <= 0.5 <= high:
            return "not told apart"
        return "as the paper" if (low > 0.5) == (self.expected > 0) else "the other way"


@part
class LevelFluctuation:
    """What was compared at a level, and what came of it."""

    spans: int
    counterparts: int
    problems: int
    channels: int
    features: dict[str, FeatureContrast]
    time_failing: list[Ends]
    """x_t from the span's first token on, in units of each channel's mean, mean over channels."""
    time_counterpart: list[Ends]
    frequencies: list[float]
    """Radians per token."""
    power_failing: list[Ends]
    """Share of the power at each frequency, mean over channels (Eq. 2)."""
    power_counterpart: list[Ends]


class ProfilePanel(NamedTuple):
    """A chart and its title."""

    title: str
    axis: str
    chart: Chart


def page(checkpoint: str, layer: int, levels: Mapping[str, LevelFluctuation]) -> str:
    """The page; equal contents give equal pages."""
    return filled(
        "fluctuating.html.j2",
        "page.css",
        checkpoint=checkpoint,
        layer=layer,
        sides=SIDES,
        levels=[
            (level, row, [_time(level, row), _power(level, row)]) for level, row in levels.items()
        ],
    )


def _time(level: str, row: LevelFluctuation) -> ProfilePanel:
    x = [float(t) for t in range(len(row.time_failing))]
    chart = _chart(x, (row.time_failing, row.time_counterpart), f"{level}: x_t over time")
    return ProfilePanel("Activation", "tokens since the span's start", chart)


def _power(level: str, row: LevelFluctuation) -> ProfilePanel:
    chart = _chart(
        row.frequencies, (row.power_failing, row.power_counterpart), f"{level}: P over frequency"
    )
    return ProfilePanel("Share of the power", "frequency, radians per token", chart)


def _chart(x: Sequence[float], sides: Sequence[Sequence[Ends]], label: str) -> Chart:
    dots = [
        Dot(len(x) * s + i, at, value, low, high, f"{SIDES[s]}, {at:.3g}: {value:.3g}", True, s)
        for s, side in enumerate(sides)
        for i, (at, (value, low, high)) in enumerate(zip(x, side, strict=True))
        if value is not None
    ]
    scale = figures.axis(dot.x for dot in dots)
    chart = figures.ratio_chart(dots, scale, label=label, favourite=None, most_accurate=None)
    return chart._replace(dense=True)
