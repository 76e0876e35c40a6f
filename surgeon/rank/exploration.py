"""Whether more exploring pays: accuracy as a parabola of the E segments (NEX sec. 5.2, Fig. 4)."""

# Shapes: C candidates, B resamples.

import math
from collections.abc import Sequence

import numpy as np

from surgeon import metrics
from surgeon.ranking import InvertedU, RankedCandidate

SURE = 0.05
"""Below this p the square term, or the slope, is called real."""
RESAMPLES = 1000


def inverted_u(candidates: Sequence[RankedCandidate], seed: int = 0) -> InvertedU | None:
    """The parabola of the true accuracies, where they are known, else of the estimated ones; None
    where four candidates don't have both, or nothing varies."""
    known = any(c.accuracy is not None for c in candidates)
    pairs = [
        (c.scores.get("explore_segments"), c.accuracy if known else c.scores.get("estimate"))
        for c in candidates
    ]
    there = [(x, y) for x, y in pairs if x is not None and y is not None]
    x_C, y_C = np.array(there, float).reshape(-1, 2).T
    fit = metrics.parabola(x_C, y_C)
    if fit is None:
        return None
    vertices_B = resampled_vertices(x_C, y_C, seed)
    peaks_B = vertices_B[~np.isnan(vertices_B)]
    low = high = None
    if len(peaks_B) > RESAMPLES / 2:
        low, high = (float(end) for end in np.quantile(peaks_B, (0.025, 0.975)))
    verdict = verdict_of(fit, x_C, y_C)
    of = "accuracy" if known else "estimate"
    return InvertedU(
        of=of,
        candidates=len(x_C),
        r2=fit.r2,
        r2_line=fit.r2_line,
        vertex=fit.vertex if math.isfinite(fit.vertex) else None,
        vertex_interval=(low, high),
        p=fit.p,
        verdict=verdict,
        line=sentence(fit, of, len(x_C), verdict, (low, high)),
    )


def resampled_vertices(x_C: np.ndarray, y_C: np.ndarray, seed: int) -> np.ndarray:
    """float64_B: where the parabola of resampled candidates has its maximum; nan where it has none.

    A resample of three different points fits them exactly: they are left in, as they widen the
    interval.
    """
    rng = np.random.default_rng(seed)
    found = np.full(RESAMPLES, math.nan)
    for n, drawn in enumerate(rng.integers(len(x_C), size=(RESAMPLES, len(x_C)))):
        x, y = x_C[drawn], y_C[drawn]
        if len(np.unique(x)) >= 3 and np.ptp(y) > 0:
            c, b, _ = np.polyfit((x - x_C.mean()) / np.ptp(x_C), y, 2)
            if c < 0:
                found[n] = x_C.mean() - np.ptp(x_C) * b / (2 * c)
    return found


def verdict_of(fit: metrics.Parabola, x_C: np.ndarray, y_C: np.ndarray) -> str:
    """An inverted U needs a square term below 0 that is real, and its maximum among the candidates;
    else the line decides."""
    inside = float(x_C.min()) < fit.vertex < float(x_C.max())
    if fit.p < SURE and inside:
        return "inverted U" if fit.c < 0 else "U"
    from scipy.stats import pearsonr

    found = pearsonr(x_C, y_C)
    if found.pvalue >= SURE:  # pyright: ignore[reportAttributeAccessIssue]
        return "flat"
    return "rising" if found.statistic > 0 else "falling"  # pyright: ignore[reportAttributeAccessIssue]


def sentence(
    fit: metrics.Parabola,
    of: str,
    n: int,
    verdict: str,
    ends: tuple[float | None, float | None],
) -> str:
    """The statement, with its numbers."""
    what = "true accuracy" if of == "accuracy" else "estimated accuracy"
    fitted = f"R2 {fit.r2:.2f}, the line's {fit.r2_line:.2f}, p of the square term {fit.p:.2g}"
    found = {
        "inverted U": f"an inverted U with its top at {fit.vertex:.1f} E segments",
        "U": f"a U with its bottom at {fit.vertex:.1f} E segments: no inverted U",
        "rising": "rising: no inverted U",
        "falling": "falling: no inverted U",
        "flat": "of no shape that shows: no inverted U",
    }[verdict]
    low, high = ends
    if verdict == "inverted U" and low is not None and high is not None:
        found += f" (95%: {low:.1f} to {high:.1f})"
    return f"Over the E segments of {n} candidates, {what} is {found}; {fitted}."
