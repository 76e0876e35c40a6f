"""What it is worth to let a detector fire: thresholds for the checkpoint that is watched, and the
accuracy that firing gains or costs.

Not in the paper, which reports what its monitors reach and not when they would do harm. A firing at
a failing step end and one at a sound step end are forced on trial, each beside the same beginning
that goes on without it. A threshold's worth for a response is that of its first firing: after it
the response is another one. Where a firing draws its step anew the response goes on as before, and
later firings count as well: what that is worth is measured on whole responses.
"""

# Shapes: N step ends of one level in the order of their traces and steps, P problems, R resamples,
# K trials.

from typing import NamedTuple

import numpy as np

from surgeon import metrics
from surgeon.neureasoner.detectors import Interval, as_interval

NEVER = 2.0
"""A threshold that no probability reaches."""
RESAMPLES = 1000


class Readings(NamedTuple):
    """What a detector says at the step ends of labelled traces."""

    probability_N: np.ndarray
    failing_N: np.ndarray
    """bool"""
    trace_N: np.ndarray
    """Number of the trace, ascending; within a trace in the order of its steps."""
    problem_N: np.ndarray
    """Number of the trace's problem."""


class Trials(NamedTuple):
    """Forced firings beside the same beginnings without them."""

    failing_K: np.ndarray
    """bool: at a failing step end."""
    problem_K: np.ndarray
    gain_K: np.ndarray
    """Right with the firing less right without it: -1, 0 or 1."""
    tokens_K: np.ndarray
    """Tokens of the answer with the firing less those without it."""


NO_TRIALS = Trials(np.zeros(0, bool), np.zeros(0, int), np.zeros(0), np.zeros(0))


class Effect(NamedTuple):
    """What a firing does, [mean, low, high] by problem."""

    trials: int
    gain: Interval
    """Of the share of right answers."""
    tokens: Interval


class Worth(NamedTuple):
    """What a level's detector is worth, and from which probability on it fires."""

    true: Effect
    """A firing at a failing step end."""
    false: Effect
    """At a sound one."""
    best: float
    """The threshold with the largest expected gain, all data together; NEVER where none gains."""
    threshold: float
    """The one that the rest is of: `best` where it is asked and worth switching on, else the one of
    the false alarms."""
    gain: Interval
    """Expected change of the share of right answers. Of `best` with thresholds from one half of
    the problems, counted on the other. Where firings draw steps anew it is measured."""
    tokens: Interval
    """Expected change of an answer's tokens, likewise."""
    fired_true: float
    """Share of the traces whose first firing is at a failing step end."""
    fired_false: float
    on: bool
    """Whether it is worth switching on."""
    reason: str
    answers: int = 0
    """Responses on which gain and tokens were measured; 0: they are expected ones."""


def false_alarm_threshold(probability_N: np.ndarray, failing_N: np.ndarray, rate: float) -> float:
    """The lowest threshold at which at most this share of the sound step ends fires.

    It lies in the middle between two neighbouring probabilities; NEVER where even the highest
    probability fires too often.
    """
    sound = np.sort(probability_N[~failing_N])[::-1]
    allowed = int(rate * len(sound) + 1e-9)
    every = np.unique(probability_N)[::-1]
    fine = [p for p in every if int((sound >= p).sum()) <= allowed]
    if not fine:
        return NEVER
    below = every[every < fine[-1]]
    return float((fine[-1] + (below[0] if len(below) else 0.0)) / 2)


def first_firings(readings: Readings, threshold: float) -> np.ndarray:
    """bool_N: the step ends that are the first of their trace to reach the threshold."""
    fires = np.flatnonzero(readings.probability_N >= threshold)
    _, first = np.unique(readings.trace_N[fires], return_index=True)
    first_N = np.zeros(len(readings.probability_N), bool)
    first_N[fires[first]] = True
    return first_N


def expected_gain(readings: Readings, threshold: float, true: float, false: float) -> float:
    """Mean over the traces of what their first firing is worth: `true` at a failing step end,
    `false` at a sound one, nothing where nothing fires."""
    first_N = first_firings(readings, threshold)
    hits = int((first_N & readings.failing_N).sum())
    alarms = int((first_N & ~readings.failing_N).sum())
    return (hits * true + alarms * false) / len(np.unique(readings.trace_N))


def best_gain_threshold(readings: Readings, true: float, false: float) -> float:
    """The threshold with the largest expected gain; of equals the highest, and NEVER where none
    is above 0."""
    every = np.unique(readings.probability_N)[::-1]
    below = np.append(every[1:], 0.0)
    best, chosen = 0.0, NEVER
    for threshold in ((every + below) / 2).tolist():
        gain = expected_gain(readings, threshold, true, false)
        if gain > best + 1e-12:
            best, chosen = gain, threshold
    return chosen


def worth(
    readings: Readings,
    trials: Trials,
    alarms: float,
    *,
    tolerance: float,
    seed: int = 0,
    at_alarms: bool = False,
) -> Worth:
    """What a level's detector is worth at the threshold that gains most, and, where that isn't
    worth switching on or isn't asked (`at_alarms`), at the one of the false alarms, `alarms`.

    It is switched on where firing gains accuracy (the 95 % interval lies above 0), or where it
    saves tokens and the interval of the accuracy lies above -`tolerance`. Problems are resampled,
    the trials with them.
    """
    n_problems = int(max(readings.problem_N.max(), trials.problem_K.max(initial=-1))) + 1
    weight_RP = np.ones((1, n_problems))
    drawn_RP = metrics.resampled_means(np.eye(n_problems), seed=seed, n=RESAMPLES) * n_problems
    weight_RP = np.concatenate([weight_RP, drawn_RP])
    true, false = (_effect(trials, trials.failing_K == side, weight_RP) for side in (True, False))
    best = best_gain_threshold(readings, true.gain[0] or 0.0, false.gain[0] or 0.0)
    policies = (
        (best, _cross_fitted_firings(readings, trials, n_problems, seed)),
        (alarms, first_firings(readings, alarms)),
    )
    found = []
    for threshold, first_N in policies:
        gain, tokens, shares = _expected(readings, trials, first_N, weight_RP)
        verdict = _verdict(gain, tokens, tolerance)
        found.append(Worth(true, false, best, threshold, gain, tokens, *shares, *verdict))
    return found[0] if found[0].on and best < NEVER and not at_alarms else found[1]


def measured(
    found: Worth,
    readings: Readings,
    threshold: float,
    gain_N: np.ndarray,
    tokens_N: np.ndarray,
    problem_N: np.ndarray,
    *,
    tolerance: float,
    seed: int = 0,
) -> Worth:
    """The same with what was measured at a threshold in place of what is expected: N responses
    with every firing that a monitor makes in them, beside those without.

    `gain_N` is 1, 0 or -1: right with the firings less right without; `tokens_N` the tokens that
    were decoded, those that were thrown away included, less those without. Problems are resampled.
    """
    _, own_N = np.unique(problem_N, return_inverse=True)
    counts_RP = metrics.resample_counts(int(own_N.max()) + 1, seed=seed, n=RESAMPLES)
    weight_RN = np.concatenate([np.ones((1, len(own_N))), counts_RP[:, own_N]])
    total_R = weight_RN.sum(1)
    gain, tokens = (as_interval(weight_RN @ of_N / total_R) for of_N in (gain_N, tokens_N))
    _, at = np.unique(readings.trace_N, return_index=True)
    first_N = first_firings(readings, threshold)
    shares = [
        float((first_N & (readings.failing_N == side)).sum()) / max(len(at), 1)
        for side in (True, False)
    ]
    on, reason = _verdict(gain, tokens, tolerance)
    return found._replace(
        threshold=threshold, gain=gain, tokens=tokens, fired_true=shares[0], fired_false=shares[1],
        on=on, reason=reason, answers=len(own_N),
    )  # fmt: skip


def _cross_fitted_firings(
    readings: Readings, trials: Trials, n_problems: int, seed: int
) -> np.ndarray:
    """bool_N: the first firings at the best threshold of the other half of the problems."""
    half_P = np.random.default_rng(seed).permutation(n_problems) % 2
    first_N = np.zeros(len(readings.probability_N), bool)
    for half in (0, 1):
        there_N = half_P[readings.problem_N] != half
        if not there_N.any():
            continue
        gains = [
            _mean(trials.gain_K[(half_P[trials.problem_K] != half) & (trials.failing_K == side)])
            for side in (True, False)
        ]
        chosen = best_gain_threshold(Readings(*(part[there_N] for part in readings)), *gains)
        first_N |= first_firings(readings, chosen) & ~there_N
    return first_N


def _mean(value_K: np.ndarray) -> float:
    return float(value_K.mean()) if len(value_K) else 0.0


def _effect(trials: Trials, chosen_K: np.ndarray, weight_RP: np.ndarray) -> Effect:
    gain_R, tokens_R = _means(trials, chosen_K, weight_RP)
    return Effect(int(chosen_K.sum()), as_interval(gain_R), as_interval(tokens_R))


def _means(
    trials: Trials, chosen_K: np.ndarray, weight_RP: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean gain and mean tokens of these trials in each resample of the problems."""
    weight_RK = weight_RP[:, trials.problem_K] * chosen_K
    total_R = weight_RK.sum(1)
    gain_R, tokens_R = (
        np.divide(weight_RK @ of_K, total_R, out=np.full(len(total_R), np.nan), where=total_R > 0)
        for of_K in (trials.gain_K, trials.tokens_K)
    )
    return gain_R, tokens_R


def _expected(
    readings: Readings, trials: Trials, first_N: np.ndarray, weight_RP: np.ndarray
) -> tuple[Interval, Interval, tuple[float, float]]:
    """Expected gain and tokens of a response, and how often it fires first rightly and falsely."""
    _, at = np.unique(readings.trace_N, return_index=True)
    traces_R = weight_RP[:, readings.problem_N[at]].sum(1)
    gain_R, tokens_R, shares = np.zeros_like(traces_R), np.zeros_like(traces_R), []
    for side in (True, False):
        fired_N = first_N & (readings.failing_N == side)
        fires_R = weight_RP[:, readings.problem_N] @ fired_N
        # Nothing is known where none of the problems with readings is drawn.
        share_R = np.divide(
            fires_R, traces_R, out=np.full(len(traces_R), np.nan), where=traces_R > 0
        )
        shares.append(float(share_R[0]))
        for of_R, mean_R in zip(
            (gain_R, tokens_R), _means(trials, trials.failing_K == side, weight_RP), strict=True
        ):
            # What never fires is worth nothing, however little is known of it; in a resample that
            # lacks a kind of trial the worth isn't known.
            of_R += np.where(share_R == 0, 0.0, share_R * mean_R)
    return as_interval(gain_R), as_interval(tokens_R), (shares[0], shares[1])


def _verdict(gain: Interval, tokens: Interval, tolerance: float) -> tuple[bool, str]:
    low, high = gain[1], gain[2]
    if low is None or high is None or gain[0] is None:
        return False, "too little is known of what a firing is worth"
    if low > 0:
        return True, "firing gains right answers"
    saves = tokens[2] is not None and tokens[2] < 0
    if low == high == 0 and not saves:
        return False, "no firing gains or saves anything"
    if saves and low > -tolerance:
        return True, "firing saves tokens and costs no right answers"
    if high < 0:
        return False, "firing costs right answers"
    return False, "firing isn't told apart from not firing"
