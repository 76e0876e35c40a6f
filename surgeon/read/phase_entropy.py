"""Whether E is the more uncertain phase (NEX Tab. 5), and how novelty and entropy go together.

Rows are pooled over a candidate's responses. Row entropies are means over tokens, so a phase's mean
counts every row with its tokens. A row is in disagreement when its slope and its entropy lie on
different sides of their medians (sec. 5.1). Intervals resample prompts.
"""

# Shape letters: R rows, P prompts.

import math
from collections.abc import Iterable, Sequence

import numpy as np

from surgeon import metrics
from surgeon.artifact import part
from surgeon.report.browser import VERDICTS, BrowsedResponse

RESAMPLES = 1000
End = float | None


@part
class PhaseEntropy:
    """What a candidate's rows say; None where there is nothing to say it from."""

    candidate: str
    responses: int
    rows: int
    explore_rows: int
    segments: float
    """E segments per response."""
    cycles: dict[str, int] | None
    """Verdict -> cycles of all responses; None where they aren't known."""
    entropy_explore: float | None
    """Mean token entropy in E rows, nats."""
    entropy_exploit: float | None
    difference: float | None
    """The first less the second."""
    difference_interval: tuple[End, End]
    """95 %, resampling prompts."""
    spearman: float | None
    """Of slope and entropy, over rows."""
    spearman_z: float | None
    """Of the standardised slope, without its trend, and entropy."""
    disagreement: float | None
    """Share of the rows where slope and entropy lie on different sides of their medians."""


def phase_entropy(
    candidate: str, responses: Iterable[BrowsedResponse], *, seed: int
) -> PhaseEntropy:
    """The statistics of one candidate's responses."""
    prompts: dict[str, int] = {}
    segments = 0
    known, verdicts = True, dict.fromkeys(VERDICTS, 0)
    columns: list[list[np.ndarray]] = []
    for r in responses:
        place = prompts.setdefault(r.prompt_id, len(prompts))
        explore_R = np.array(r.explore_R, bool)
        segments += int(np.count_nonzero(np.diff(explore_R.astype(np.int8), prepend=0) == 1))
        known &= r.cycles is not None
        for cycle in r.cycles or ():
            verdicts[cycle.verdict] += 1
        columns.append([
            np.full(len(explore_R), place), explore_R, np.array(r.tokens_R, float),
            np.array(r.entropy_R, float), np.array(r.slope_R, float), np.array(r.z_R, float),
        ])  # fmt: skip
    place_R, explore_R, tokens_R, entropy_R, slope_R, z_R = (
        np.concatenate([np.zeros(0), *(c[i] for c in columns)]) for i in range(6)
    )
    explore_R = explore_R.astype(bool)
    sums_P4 = np.zeros((len(prompts), 4))
    for i, of_R in enumerate((explore_R, ~explore_R)):
        at = place_R[of_R].astype(int)
        np.add.at(sums_P4[:, 2 * i], at, entropy_R[of_R] * tokens_R[of_R])
        np.add.at(sums_P4[:, 2 * i + 1], at, tokens_R[of_R])
    explore, exploit, difference = _means(sums_P4.sum(0, keepdims=True))
    interval: tuple[End, End] = (None, None)
    if len(prompts) > 1:
        count_BP = metrics.resample_counts(len(prompts), seed=seed, n=RESAMPLES)
        drawn_B = _means(count_BP @ sums_P4)[2]
        drawn_B = drawn_B[~np.isnan(drawn_B)]
        if len(drawn_B) > RESAMPLES / 2:
            low, high = np.quantile(drawn_B, (0.025, 0.975)).tolist()
            interval = low, high
    return PhaseEntropy(
        candidate=candidate,
        responses=len(columns),
        rows=len(slope_R),
        explore_rows=int(explore_R.sum()),
        segments=segments / max(1, len(columns)),
        cycles=verdicts if known else None,
        entropy_explore=_known(explore[0]),
        entropy_exploit=_known(exploit[0]),
        difference=_known(difference[0]),
        difference_interval=interval,
        spearman=_correlation(slope_R, entropy_R),
        spearman_z=_correlation(z_R, entropy_R),
        disagreement=disagreement(slope_R, entropy_R),
    )


def _means(sums_B4: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean entropy in E rows, in X rows, and the difference; nan without rows."""
    with np.errstate(invalid="ignore", divide="ignore"):
        explore_B = sums_B4[:, 0] / sums_B4[:, 1]
        exploit_B = sums_B4[:, 2] / sums_B4[:, 3]
    return explore_B, exploit_B, explore_B - exploit_B


def disagreement(slope_R: np.ndarray, entropy_R: np.ndarray) -> float | None:
    """Share of rows in which one is above its median and the other isn't; None below two rows."""
    if len(slope_R) < 2:
        return None
    above = [values > np.median(values) for values in (slope_R, entropy_R)]
    return float(np.mean(above[0] != above[1]))


def _correlation(a_R: np.ndarray, b_R: np.ndarray) -> float | None:
    if len(a_R) < 3 or np.ptp(a_R) == 0 or np.ptp(b_R) == 0:
        return None
    return _known(metrics.spearman(a_R, b_R))


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def uncertainty_warnings(found: Sequence[PhaseEntropy]) -> list[str]:
    """Where E is not the more uncertain phase, a sentence each."""
    lines = []
    known = [c for c in found if c.difference is not None]
    lower = [c for c in known if _ends(c)[1] <= 0]
    unsure = [c for c in known if _ends(c)[0] <= 0 < _ends(c)[1]]
    if lower:
        lines.append(
            f"E is not the more uncertain phase of {_names(lower)}: the mean entropy of its rows "
            f"is {_pair(lower[0])}. In the paper it is the higher one everywhere (Tab. 5); look "
            "whether E means exploring here."
        )
    if unsure:
        lines.append(
            f"Whether E is the more uncertain phase of {_names(unsure)} can't be told: the "
            "interval of the difference holds 0."
        )
    return lines


def _ends(found: PhaseEntropy) -> tuple[float, float]:
    """The interval of the difference; the difference itself where there is none."""
    low, high = found.difference_interval
    value = found.difference or 0.0
    return (value if low is None else low), (value if high is None else high)


def _names(found: Sequence[PhaseEntropy]) -> str:
    names = [c.candidate for c in found]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _pair(found: PhaseEntropy) -> str:
    pair = f"{found.entropy_explore:.3f} nats against {found.entropy_exploit:.3f} in X"
    return f"{pair} ({found.candidate})"
