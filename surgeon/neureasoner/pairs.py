"""Failing spans against their counterparts: profiles in time and frequency, and how far each
feature tells the two apart (sec. 2.2, Fig. 2 lower).
"""

# Shapes: N spans, T tokens of a span, C channels, K probes, R resamples, P problems.

from collections.abc import Sequence

import numpy as np

from surgeon import metrics
from surgeon.neureasoner.detectors import Interval, as_interval, quality

EXPECTED = {
    "intra": {"high": 1, "entropy": 1, "energy": 1},
    "inter": {"dominant": 1, "entropy": -1},
    "instance": {"low": 1, "entropy": -1},
}
"""Which way a failure moves each feature by sec. 3.1: sharp spikes (more high frequencies, a wider
spectrum, more energy), periodicity (one frequency rules), collapse (low frequencies rule)."""


def usual_level(spans_TC: Sequence[np.ndarray]) -> np.ndarray:
    """float64_C: each channel's mean magnitude over all tokens of these spans; 1 where it is 0."""
    total_C = np.sum([np.abs(x_TC).sum(0) for x_TC in spans_TC], axis=0)
    mean_C = total_C / sum(len(x_TC) for x_TC in spans_TC)
    return np.where(mean_C > 0, mean_C, 1.0)


def time_profile(x_TC: np.ndarray, usual_C: np.ndarray, tokens: int) -> np.ndarray:
    """float64_T: x_t = |a_t| of the first tokens in units of each channel's usual level, mean over
    the channels; nan after the span's end."""
    profile_T = np.full(tokens, np.nan)
    x_T = (np.abs(x_TC[:tokens]) / usual_C).mean(1)
    profile_T[: len(x_T)] = x_T
    return profile_T


def frequency_profile(x_TC: np.ndarray, probes: Sequence[float]) -> np.ndarray:
    """float64_K: the normalised power at the probes (Eq. 2), mean over the channels.

    Without the mean of x_t; channels that don't move have no spectrum and are left out.
    """
    x_TC = np.abs(x_TC)
    y_TC = x_TC - x_TC.mean(0)
    phase_KT = np.exp(-1j * np.outer(probes, np.arange(len(y_TC))))
    power_KC = np.abs(phase_KT @ y_TC) ** 2
    total_C = power_KC.sum(0)
    moves_C = total_C > 1e-12
    if not moves_C.any():
        return np.full(len(probes), np.nan)
    return (power_KC[:, moves_C] / total_C[moves_C]).mean(1)


def mean_with_interval(
    value_NX: np.ndarray, problem_N: Sequence[int], seed: int = 0
) -> list[Interval]:
    """[mean, low, high] of each column over problems, 95 % by problem; nan values are left out."""
    problems = sorted(set(problem_N))
    by_problem = [np.asarray(value_NX)[np.asarray(problem_N) == problem] for problem in problems]
    value_PX = np.array([_nanmean(some_NX) for some_NX in by_problem])
    end_X2 = metrics.percentile_interval(metrics.resampled_means(value_PX, seed=seed, n=500))
    return [
        [None if np.isnan(v) else float(v) for v in (mean, low, high)]
        for mean, (low, high) in zip(_nanmean(value_PX), end_X2, strict=True)
    ]


def _nanmean(value_NX: np.ndarray) -> np.ndarray:
    known_NX = ~np.isnan(value_NX)
    count_X = known_NX.sum(0)
    total_X = np.where(known_NX, value_NX, 0.0).sum(0)
    return np.divide(total_X, count_X, out=np.full(len(total_X), np.nan), where=count_X > 0)


def effect_size(
    value_N: np.ndarray, failing_N: np.ndarray, problem_N: Sequence[int], seed: int = 0
) -> Interval:
    """Cohen's d of the failing spans over the others, with a 95 % interval by problem.

    The difference of the means over the pooled standard deviation (n - 1); None where either side
    has fewer than two spans, or nothing varies.
    """
    names, number_N = np.unique(np.asarray(problem_N), return_inverse=True)
    n_problems = len(names)
    weight_RP = np.ones((1, n_problems))
    if n_problems > 1:
        drawn_RP = metrics.resampled_means(np.eye(n_problems), seed=seed, n=500) * n_problems
        weight_RP = np.concatenate([weight_RP, drawn_RP])
    weight_RN = weight_RP[:, number_N]
    mean, square, count = [], [], []
    for side_N in (failing_N, ~failing_N):
        side_RN = weight_RN * side_N
        n_R = side_RN.sum(1)
        mean_R = np.divide(side_RN @ value_N, n_R, out=np.full(len(n_R), np.nan), where=n_R > 0)
        mean.append(mean_R)
        square.append((side_RN * (value_N - mean_R[:, None]) ** 2).sum(1))
        count.append(n_R)
    free_R = count[0] + count[1] - 2
    enough_R = (count[0] > 1) & (count[1] > 1)
    spread_R = np.sqrt(
        np.divide(square[0] + square[1], free_R, where=enough_R, out=np.zeros_like(free_R))
    )
    known_R = enough_R & (spread_R > 1e-12)
    d_R = np.divide(mean[0] - mean[1], spread_R, where=known_R, out=np.full(len(free_R), np.nan))
    return as_interval(d_R)


def auroc(
    value_N: np.ndarray, failing_N: np.ndarray, problem_N: Sequence[int], seed: int = 0
) -> Interval:
    """The chance that a failing span has a higher value than another, ties half; with a 95 %
    interval by problem."""
    return quality(
        np.asarray(value_N, float), np.asarray(failing_N, bool), np.asarray(problem_N),
        threshold=np.inf, seed=seed,
    )["auroc"]  # fmt: skip
