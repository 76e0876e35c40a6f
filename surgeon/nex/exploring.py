"""Rows to phases and cycles (NEX sec. 3.1): novelty, its trend, the two-state path, its runs."""

# Shapes: E stored entries (row, neuron), R rows, N all neurons, K neurons kept, M runs of equal
# rows, S states (0 = X, 1 = E).

import warnings
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from surgeon.nex.presets import DEFAULT, EPS, Readings

if TYPE_CHECKING:
    from surgeon.activations import Activations


def first_seen(acts: "Activations") -> np.ndarray:
    """Positions among the entries, int64_K ascending, at which a neuron appears for the first time
    in the response: all N_r minus N_<r of Eq. 1 and 2, row after row."""
    n_entries = len(acts.neuron_E)
    if n_entries == 0:
        return np.zeros(0, np.int64)
    position = np.int32 if n_entries < 2**31 else np.int64
    first_N = np.full(span_of(acts), -1, position)
    # An index that is assigned twice keeps the last value, so walking backwards keeps the first.
    first_N[acts.neuron_E[::-1]] = np.arange(n_entries - 1, -1, -1, dtype=position)
    new_E = np.zeros(n_entries, bool)
    new_E[first_N[first_N >= 0]] = True
    return np.flatnonzero(new_E)


def novelty(acts: "Activations", first_K: np.ndarray) -> np.ndarray:
    """Novelty slope, float64_R: neurons that row r is the first to use, per token of the row."""
    return np.diff(np.searchsorted(first_K, acts.start_R1)) / acts.tokens_R  # Eq. 1


class Observations(NamedTuple):
    """What the phases are decoded from."""

    z_R: np.ndarray
    """float64, the standardised slope."""
    mad: float
    """Raw median absolute deviation of the residual; 0 means that z_R is residual / epsilon."""


def standardise(slope_R: np.ndarray, readings: Readings = DEFAULT) -> Observations:
    """Log slope without its log-time trend, centred by the median and scaled by the MAD;
    nothing and 0 without rows."""
    if len(slope_R) == 0:
        return Observations(np.zeros(0), 0.0)
    log_R = np.log1p(slope_R)  # Eq. 18
    time_R = np.log1p(np.arange(len(slope_R)) + float(readings.log_time_from))  # R1
    design = np.stack([np.ones_like(time_R), time_R], axis=1)
    residual_R = log_R - design @ np.linalg.lstsq(design, log_R, rcond=None)[0]  # Eq. 19
    centred_R = residual_R - np.median(residual_R)
    mad = float(np.median(np.abs(centred_R)))
    return Observations(centred_R / (mad + EPS), mad)  # Eq. 20


class Emissions(NamedTuple):
    """The Gaussian of each state."""

    mean_S: np.ndarray
    """float64, ascending: the state with the larger mean is E (sec. 3.1)."""
    variance_S: np.ndarray
    """float64, at least 1e-6."""


def emissions(z_R: np.ndarray, steps: int = DEFAULT.gmm_steps) -> Emissions:
    """Means and variances of a two-component mixture fitted to z in at most `steps` steps of EM,
    with a fixed seed."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(2, covariance_type="diag", random_state=0, max_iter=steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(z_R[:, None])
    mean_S = np.asarray(mixture.means_)[:, 0]  # Eq. 21
    variance_S = np.asarray(mixture.covariances_)[:, 0]
    order_S = np.argsort(mean_S, kind="stable")
    return Emissions(mean_S[order_S], np.maximum(variance_S[order_S], 1e-6))


def viterbi(z_R: np.ndarray, states: Emissions, rho: float) -> np.ndarray:
    """bool_R, true in state E: likeliest path of a sticky two-state HMM with these emissions."""
    from hmmlearn.hmm import GaussianHMM

    hmm = GaussianHMM(2, covariance_type="diag", init_params="", params="")
    hmm.startprob_ = np.array([0.5, 0.5])
    hmm.transmat_ = np.array([[rho, 1 - rho], [1 - rho, rho]])  # Eq. 22
    hmm.means_, hmm.covars_ = states.mean_S[:, None], states.variance_S[:, None]
    return hmm.decode(z_R[:, None], algorithm="viterbi")[1] == 1


def smooth(explore_R: np.ndarray, readings: Readings = DEFAULT) -> np.ndarray:
    """bool_R without short runs: each run below `min_run` rows joins a neighbour (sec. A.5, R3).

    One walk over the decoded runs, from first to last; a path of one run stays as it is.
    "previous": lengths are those decoded. A short run takes the state that the row before it has
    by now; the first run takes the state of the second. Its result may still hold a short run at
    the start when `min_run` is above 2.
    "longer": a short run's rows go to the longer of the two runs beside it, to the one before on a
    tie. The run before counts with all rows it has taken; the run after, when it takes rows, is
    judged by its new length. A decoded run is judged as such even where the run before it has
    taken on its state. No short run remains, unless the whole response is one.
    """
    bounds = segment_bounds(explore_R)
    length_M = [b - a for a, b in pairwise(bounds)]
    state_M = [bool(explore_R[a]) for a in bounds[:-1]]
    if readings.short_run_joins == "previous":
        for i, length in enumerate(length_M):
            if length < readings.min_run and len(length_M) > 1:
                state_M[i] = state_M[i - 1] if i else state_M[1]
        return np.repeat(np.array(state_M, bool), length_M)
    kept: list[tuple[bool, int]] = []
    for i, length in enumerate(length_M):
        after = length_M[i + 1] if i + 1 < len(length_M) else 0
        if length >= readings.min_run or not (kept or after):
            kept.append((state_M[i], length))
        elif kept and kept[-1][1] >= after:
            kept[-1] = (kept[-1][0], kept[-1][1] + length)
        else:
            length_M[i + 1] += length  # before the walk gets there
    return np.repeat(np.array([state for state, _ in kept], bool), [n for _, n in kept])


def decode(observations: Observations, readings: Readings = DEFAULT) -> np.ndarray:
    """bool_R, true in E rows as decoded: short runs still stand."""
    z_R, mad = observations
    if mad == 0 and readings.zero_mad == "residual":  # R6
        return z_R > 0
    if np.ptp(z_R) < EPS:
        return np.zeros(len(z_R), bool)
    return viterbi(z_R, emissions(z_R, readings.gmm_steps), readings.rho)


def phases(slope_R: np.ndarray, readings: Readings = DEFAULT) -> np.ndarray:
    """bool_R, true where the row explores (E) and false where it exploits (X)."""
    if len(slope_R) < readings.min_rows:  # R6
        return np.zeros(len(slope_R), bool)
    return smooth(decode(standardise(slope_R, readings), readings), readings)


class Cycle(NamedTuple):
    """An E run and the X run after it, as slices of rows."""

    explore: slice
    exploit: slice


def cycles(explore_R: np.ndarray) -> list[Cycle]:
    """The E -> X cycles in order; an E run that ends the response has no X run and is none."""
    bounds = segment_bounds(explore_R)
    return [
        Cycle(slice(a, b), slice(b, c))
        for a, b, c in zip(bounds, bounds[1:], bounds[2:], strict=False)
        if explore_R[a]
    ]


def segment_bounds(explore_R: np.ndarray) -> list[int]:
    """First row of every run of equal rows, then the number of rows; [0] without rows."""
    edges = (np.flatnonzero(np.diff(explore_R)) + 1).tolist()
    return [0, *edges, len(explore_R)] if len(explore_R) else [0]


def segments(explore_R: np.ndarray) -> int:
    """Number of E segments, a last one without an X phase included (sec. 5.2)."""
    return int(np.count_nonzero(np.diff(explore_R.astype(np.int8), prepend=0) == 1))


def span_of(acts: "Activations") -> int:
    """One more than the largest neuron key of the response."""
    return int(acts.neuron_E.max()) + 1 if len(acts.neuron_E) else 0
