"""NEX: Neuron Explore-Exploit Scoring for Label-Free Chain-of-Thought Selection and Model Ranking.

A response is cut into rows of tokens. Rows that recruit many new FFN neurons explore (E), the
others exploit (X). Neurons that an E phase introduces are credited when the X phase after it uses
them, and debited when it doesn't. A model's score is the share of its activation mass that sits on
credited neurons. Arrays in, arrays out: no model, no file, no randomness.

Equation -> function (numbers are the paper's; 3, 4 and 17 happen while recording):

    1          novelty slope per row                     first_seen, novelty
    2          neurons a cycle introduces                cycle_readings
    3, 4       h = phi(gate) * up; mass = max(0, h)      surgeon.activations.record
    5, 6       reuse share, progress                     cycle_readings
    7, 8       consolidation, strength gate              cycle_readings
    9, 10      effective and redundant evidence          cycle_credit, accumulate
    11         neuron weights                            weights
    12-14      Good-Mass Fraction                        good_mass_fraction
    15, 16     auxiliaries Reward and Bad                good_mass_fraction
    17         neuron keys                               surgeon.neurons (R7)
    18-20      log, log-time trend, median and MAD       standardise
    21         two Gaussian emissions                    emissions
    22         sticky transitions, Viterbi               viterbi
    sec. 3.3   model score: a mean over responses        counted
    sec. 4.4   baselines                                 hes entropy_top20 mean_logprob; length
    Fig. 1a    high-entropy rows per response            entropy_rows
    sec. 5.2   number of E segments                      segments

Readings: places where the paper is silent or differs from the published reference code.
`surgeon.settings.nex.NexReadings` holds them; `PRESETS` sets all of them at once; the default is
the reference's.

    R1  log-time of Eq. 19 starts at r = 1 (paper) or r = 0 (reference). On the reference's own
        example 35 exploring rows become 28 of 83.
    R2  the median of Eq. 6 is over all cycles (paper), or over those that pass the strength gate
        and introduce neurons (reference).
    R3  a run shorter than `min_run` joins its longer neighbour (paper) or the run before it
        (reference). The order of the joins is in `smooth`.
    R4  a response without any mass scores 0 (paper) or is left out of the model score
        (reference). One with mass but no weighted mass scores 0 in both.
    R5  neurons kept per token: the paper keeps 2000; the reference's example cache holds 203-438
        keys per row. It is `top_k` of surgeon.activations.record, which also says how much mass
        was kept.
    R6  the paper doesn't say what a trace with a MAD of 0 or with very few rows gives. Reference:
        E where the residual is positive; fewer than 3 rows have no cycles. In both presets.
    R7  a key is layer * d_ff + unit (int64), not (layer << 16) | unit, which overflows for wide
        layers and in the reference empties rows of models deeper than 64 layers. Sums are float32
        or wider, never float16. Lives in surgeon.neurons and surgeon.activations.
    R8  scores saturate near 1: `saturation` spreads them. Rankings use the score itself.
    R18 the median of Eq. 6 is exact (paper) or, with the sums of Eq. 5, in float32 (reference):
        there the cycle that is the median itself has a progress of about 1e-8 instead of 0, of
        either sign, and credits or debits what it introduced. `Evidence.faint_K` counts it apart.

Degenerate inputs, decided by conditions and never by catching exceptions:

    fewer than `min_rows` rows         no row explores, so no cycles and no evidence (R6)
    MAD = 0                            `zero_mad` (R6)
    z constant (spread below 1e-6)     no state has the larger mean: no row explores
    a row without entries              its slope is 0 (the reference drops the row)
    a single cycle                     its progress is 0 (Eq. 6): no evidence (R18: about 1e-8)
    a response without entries         no evidence; reward and bad are nan; R4 decides its score

The paper names neither the mixture's number of EM steps (`gmm_steps`) nor its variance floor: 50
and 1e-6 are the reference's. A fit that stops at its last step is used as it stands.
"""

# Shapes: E stored entries (row, neuron), R rows, R1 rows + 1, N all neurons, K neurons kept,
# T tokens, M runs of equal rows, S states (0 = X, 1 = E).

import math
import warnings
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from surgeon.settings.nex import NexReadings as Readings

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from surgeon.activations import Activations

EPS = 1e-6
"""The epsilon of Eq. 5, 7, 11 and 20."""
FAINT = 1e-6
"""A progress (Eq. 6) below this is rounding, not reuse."""


PRESETS: dict[str, Readings] = {
    "paper": Readings(
        log_time_from=1,
        reuse_median_over="all",
        short_run_joins="longer",
        empty_response="zero",
        reuse_median_in="float64",
    ),
    "reference": Readings(),
}
"""All readings at once: as the paper is worded, and as its published code computes."""

DEFAULT = PRESETS["reference"]


# ---------------------------------------------------------------- sec. 3.1: phases and cycles


def first_seen(acts: "Activations") -> np.ndarray:
    """Positions among the entries, int64_K ascending, at which a neuron appears for the first time
    in the response: all N_r minus N_<r of Eq. 1 and 2, row after row."""
    n_entries = len(acts.neuron_E)
    if n_entries == 0:
        return np.zeros(0, np.int64)
    position = np.int32 if n_entries < 2**31 else np.int64
    first_N = np.full(_span(acts), -1, position)
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


# ---------------------------------------------------------------- sec. 3.2: credit


class Evidence(NamedTuple):
    """What one response says about the neurons it used."""

    neuron_K: np.ndarray
    """int64, ascending: the neurons with any evidence."""
    effective_K: np.ndarray
    """float64, addend of m+ (Eq. 9)."""
    redundant_K: np.ndarray
    """float64, addend of m- (Eq. 10)."""
    faint_K: np.ndarray
    """float64, what both have of cycles whose progress is below `FAINT` (R18)."""
    slope_R: np.ndarray
    """float64, the novelty slope (Eq. 1)."""
    explore_R: np.ndarray
    """bool, true in E rows."""
    cycles: int
    """E -> X cycles found."""
    gated: int
    """Cycles that passed the strength gate and introduced neurons."""


def credit(acts: "Activations", readings: Readings = DEFAULT) -> Evidence:
    """One response's evidence, from its rows (Eq. 1-10, 18-22)."""
    first_K = first_seen(acts)
    slope_R = novelty(acts, first_K)
    return cycle_credit(acts, first_K, slope_R, phases(slope_R, readings), readings)


def cycle_credit(
    acts: "Activations",
    first_K: np.ndarray,
    slope_R: np.ndarray,
    explore_R: np.ndarray,
    readings: Readings = DEFAULT,
) -> Evidence:
    """One response's evidence, given its phases; `first_K` is from `first_seen` (Eq. 2, 5-10)."""
    found = cycle_readings(acts, first_K, slope_R, explore_R, readings, every=False)
    effective_N, redundant_N, faint_N = np.zeros((3, _span(acts)))
    gated = [read for read in found if read.strong]
    for read in gated:
        progress = read.progress
        effective = progress > 0 and read.consolidation > 0
        side_N = effective_N if effective else redundant_N
        weight = progress * read.consolidation if effective else abs(progress)
        added_K = read.mass_K * weight
        side_N[read.neuron_K] += added_K  # Eq. 9, 10
        if abs(progress) < FAINT:
            faint_N[read.neuron_K] += added_K
    kept_K = np.flatnonzero((effective_N > 0) | (redundant_N > 0))
    return Evidence(
        kept_K,
        effective_N[kept_K],
        redundant_N[kept_K],
        faint_N[kept_K],
        slope_R,
        explore_R,
        len(cycles(explore_R)),
        len(gated),
    )


class CycleReading(NamedTuple):
    """What NEX reads in one E -> X cycle."""

    cycle: Cycle
    neuron_K: np.ndarray
    """int64: the neurons that it is credited with, those it introduces (Eq. 2)."""
    mass_K: np.ndarray
    """float64, their mass in the E rows."""
    slope_explore: float
    """Median novelty slope of the E rows."""
    slope_exploit: float
    share: float
    """Reuse share in [0, 1]: of the mass of the X rows, what is on these neurons (Eq. 5)."""
    progress: float
    """Reuse share above the median cycle's (Eq. 6)."""
    consolidation: float
    """In [0, 1]: how far the slope falls from E to X (Eq. 7)."""
    strong: bool
    """It passes the strength gate (Eq. 8) and introduces neurons, so that it counts."""

    @property
    def verdict(self) -> str:
        """ "effective" or "redundant" where it counts; "even" where its progress is below `FAINT`,
        as the median cycle's own, which credits next to nothing; else "weak"."""
        if not self.strong:
            return "weak"
        if abs(self.progress) < FAINT:
            return "even"
        return "effective" if self.progress > 0 and self.consolidation > 0 else "redundant"


def cycle_readings(
    acts: "Activations",
    first_K: np.ndarray,
    slope_R: np.ndarray,
    explore_R: np.ndarray,
    readings: Readings = DEFAULT,
    *,
    every: bool = True,
) -> list[CycleReading]:
    """The cycles of a response in order, given its phases (Eq. 2, 5-8); `first_K` is from
    `first_seen`. `every` False leaves out those that are in neither the credit nor the median."""
    start_R1, first_R1 = acts.start_R1, np.searchsorted(first_K, acts.start_R1)
    # Cycle i writes i over its neurons, so the marks of earlier cycles need no clearing.
    mark_N = np.zeros(_span(acts), np.int32)
    median_slope = np.median(slope_R) if len(slope_R) else 0.0
    over_all = readings.reuse_median_over == "all"  # R2
    found: list[CycleReading] = []
    for i, (e, x) in enumerate(cycles(explore_R), start=1):
        slope_e, slope_x = np.median(slope_R[e]), np.median(slope_R[x])
        if readings.credit == "introduced":
            new_K = first_K[first_R1[e.start] : first_R1[e.stop]]
            neuron_K, mass_K = acts.neuron_E[new_K], acts.mass_E[new_K].astype(float)  # Eq. 2
        else:
            neuron_K, mass_K = _summed(acts, e)
        strong = bool(slope_e - median_slope > 0 and len(neuron_K) > 0)  # Eq. 8
        if not (strong or over_all or every):
            continue
        mark_N[neuron_K] = i
        in_x = slice(start_R1[x.start], start_R1[x.stop])
        mass_X, again_X = acts.mass_E[in_x], mark_N[acts.neuron_E[in_x]] == i
        if readings.reuse_median_in == "float32":  # R18
            row_X1 = start_R1[x.start : x.stop + 1] - in_x.start
            share = _share_in_float32(mass_X, again_X, row_X1)
        else:
            reused = (mass_X * again_X).sum(dtype=np.float64)
            share = float(reused / (mass_X.sum(dtype=np.float64) + EPS))  # Eq. 5
        consolidation = float(np.clip(1 - slope_x / (slope_e + EPS), 0, 1))  # Eq. 7
        found.append(
            CycleReading(
                Cycle(e, x), neuron_K, mass_K, float(slope_e), float(slope_x), share, 0.0,
                consolidation, strong,
            )
        )  # fmt: skip
    shares = [read.share for read in found if read.strong or over_all]
    median_share = float(np.median(np.array(shares, readings.reuse_median_in))) if shares else 0.0
    return [read._replace(progress=read.share - median_share) for read in found]  # Eq. 6


def _share_in_float32(mass_X: np.ndarray, again_X: np.ndarray, row_X1: np.ndarray) -> float:
    """Eq. 5, each row summed in float32 and the rows added up in float64: what R18 leaves of the
    median cycle's share is the rounding of these sums."""
    reused = total = 0.0
    for a, b in pairwise(row_X1.tolist()):
        mass_E = mass_X[a:b]
        reused += float(mass_E[again_X[a:b]].sum())
        total += float(mass_E.sum())
    return reused / (total + EPS)


def _span(acts: "Activations") -> int:
    """One more than the largest neuron key of the response."""
    return int(acts.neuron_E.max()) + 1 if len(acts.neuron_E) else 0


def _summed(acts: "Activations", rows: slice) -> tuple[np.ndarray, np.ndarray]:
    """Neurons with mass in these rows (int64_K ascending) and that mass, summed (float64_K)."""
    span = slice(acts.start_R1[rows.start], acts.start_R1[rows.stop])
    mass_N = np.bincount(acts.neuron_E[span], weights=acts.mass_E[span])
    neuron_K = np.flatnonzero(mass_N)
    return neuron_K, mass_N[neuron_K]


# ---------------------------------------------------------------- sec. 3.3: weights and scores


def response_mass(acts: "Activations") -> tuple[np.ndarray, np.ndarray]:
    """b_k of sec. 3.3: the neurons used (int64_K ascending) and their mass over the response
    (float32_K)."""
    neuron_K, mass_K = _summed(acts, slice(0, len(acts.tokens_R)))
    return neuron_K, mass_K.astype(np.float32)


def accumulate(evidences: Iterable[Evidence], n_neurons: int) -> tuple[np.ndarray, np.ndarray]:
    """m+ and m-, float64_N each: the evidence of all responses of a mini-set summed (Eq. 9, 10)."""
    effective_N, redundant_N = np.zeros(n_neurons), np.zeros(n_neurons)
    for evidence in evidences:
        effective_N[evidence.neuron_K] += evidence.effective_K
        redundant_N[evidence.neuron_K] += evidence.redundant_K
    return effective_N, redundant_N


def faint_share(evidences: Iterable[Evidence], n_neurons: int) -> np.ndarray:
    """float64_N in [0, 1]: share of a neuron's evidence that comes from cycles whose progress is
    below `FAINT`, so that its weight is made of rounding (R18); 0 without evidence."""
    all_N, faint_N = np.zeros(n_neurons), np.zeros(n_neurons)
    for evidence in evidences:
        all_N[evidence.neuron_K] += evidence.effective_K + evidence.redundant_K
        faint_N[evidence.neuron_K] += evidence.faint_K
    return np.divide(faint_N, all_N, out=faint_N, where=all_N > 0)


def weights(effective_N: np.ndarray, redundant_N: np.ndarray) -> np.ndarray:
    """float64_N in [-1, 1]: above 0 effective, below 0 redundant, 0 without evidence."""
    return np.tanh(np.log((effective_N + EPS) / (redundant_N + EPS)))  # Eq. 11


class ResponseScore(NamedTuple):
    """One response's Good-Mass Fraction and its auxiliaries."""

    score: float
    """PosMass / AbsMass in [0, 1]; 0 when no mass is weighted (Eq. 14)."""
    reward: float
    """PosMass / TotMass in [0, 1] (Eq. 15); nan when the response has no mass."""
    bad: float
    """(AbsMass - PosMass) / TotMass in [0, 1] (Eq. 16); nan when the response has no mass."""
    credible: bool
    """Does any of its mass sit on a weighted neuron?"""
    mass: float
    """TotMass; 0 for an empty response."""


def good_mass_fraction(
    neuron_K: np.ndarray, mass_K: np.ndarray, weight_N: np.ndarray
) -> ResponseScore:
    """Score one response from its summed masses; serves model, data and best-of-n scores alike."""
    weighted_K = mass_K.astype(np.float64) * weight_N[neuron_K]
    positive = float(weighted_K[weighted_K > 0].sum())  # Eq. 12
    negative = -float(weighted_K[weighted_K < 0].sum())
    absolute = positive + negative  # Eq. 13
    total = float(mass_K.sum(dtype=np.float64))
    return ResponseScore(
        score=positive / absolute if absolute > 0 else 0.0,  # Eq. 14
        reward=positive / total if total > 0 else math.nan,  # Eq. 15
        bad=negative / total if total > 0 else math.nan,  # Eq. 16
        credible=absolute > 0,
        mass=total,
    )


def resting_on(
    neuron_K: np.ndarray, mass_K: np.ndarray, weight_N: np.ndarray, share_N: np.ndarray
) -> float:
    """Share of a response's weighted mass (Eq. 13) that counts for `share_N` of its neurons, such
    as `faint_share`; nan where no mass is weighted."""
    weighted_K = mass_K.astype(np.float64) * np.abs(weight_N[neuron_K])
    total = float(weighted_K.sum())
    return float(weighted_K @ share_N[neuron_K]) / total if total > 0 else math.nan


def counted(score: float, empty: bool, readings: Readings = DEFAULT) -> float:
    """What a response adds to its model's score, the mean over a mini-set (sec. 3.3).

    That is its own score; nan, in no mean, for one without any mass where R4 leaves it out.
    """
    return math.nan if empty and readings.empty_response == "omitted" else score


def saturation(score: float) -> float:
    """-log10(1 - score), R8: 1 at 0.9, 2 at 0.99; 1 - score counts as at least 1e-12, so the
    largest value is 12. nan stays nan."""
    return (
        0.0 - math.log10(max(1 - score, 1e-12)) if score < 1 else 12.0 if score >= 1 else math.nan
    )


# ---------------------------------------------------------------- resampled, learned anew


class Response(NamedTuple):
    """What a score and its weights are made of."""

    evidence: Evidence
    neuron_K: np.ndarray
    """int64: the neurons used (see `response_mass`)."""
    mass_K: np.ndarray
    """float32: their mass."""


def relearned(
    responses: Sequence[Response],
    prompt_N: np.ndarray,
    count_BP: np.ndarray,
    readings: Readings = DEFAULT,
    fold_P: np.ndarray | None = None,
    scored_BP: np.ndarray | None = None,
) -> np.ndarray:
    """float64_B: the model score with its weights learned anew where prompt p stands
    `count_BP[b, p]` times, and `scored_BP[b, p]` times in the mean (by default as often); nan where
    no response counts.

    Response n answers prompt `prompt_N[n]`. With `fold_P` it is cross-fitted: the weights that
    score the prompts of a fold are learned from the prompts of the others. Each value is what
    `accumulate`, `weights`, `good_mass_fraction` and the mean give, to about 1e-5.
    """
    counts_BP = count_BP.astype(np.float32)
    total_B, n_B = np.zeros(len(count_BP)), np.zeros(len(count_BP))
    folds = [None] if fold_P is None else np.unique(fold_P).tolist()
    for fold in folds:
        scored_N = np.arange(len(responses))
        learning_BP = counts_BP
        if fold is not None and fold_P is not None:
            scored_N = np.flatnonzero(fold_P[prompt_N] == fold)
            learning_BP = counts_BP * (fold_P != fold)
        scored = [responses[n] for n in scored_N.tolist()]
        score_BN = _scored_anew(responses, prompt_N, learning_BP, scored)
        empty_N = [math.isnan(counted(0.0, not len(r.neuron_K), readings)) for r in scored]
        mean_BP = count_BP if scored_BP is None else scored_BP
        weight_BN = mean_BP[:, prompt_N[scored_N]] * ~np.array(empty_N, bool)
        total_B += (weight_BN * score_BN).sum(1)
        n_B += weight_BN.sum(1)
    return np.divide(total_B, n_B, out=np.full(len(n_B), math.nan), where=n_B > 0)


BLOCK = 2048
"""Neurons whose weights are learned at a time in all resamples."""


def _scored_anew(
    responses: Sequence[Response],
    prompt_N: np.ndarray,
    learning_BP: np.ndarray,
    scored: Sequence[Response],
) -> np.ndarray:
    """float64_BN: every scored response's Good-Mass Fraction under the weights of each resample."""
    credited = [r.evidence.neuron_K for r in responses]
    # Neurons without any evidence weigh 0 in every resample.
    neuron_U = np.unique(np.concatenate([np.zeros(0, np.int64), *credited]))
    effective_UP, redundant_UP = (
        _columns(neuron_U, credited, values, prompt_N, learning_BP.shape[1])
        for values in (
            [r.evidence.effective_K for r in responses],
            [r.evidence.redundant_K for r in responses],
        )
    )
    used, masses = [r.neuron_K for r in scored], [r.mass_K for r in scored]
    mass_UN = _columns(neuron_U, used, masses, np.arange(len(scored)), len(scored))
    positive_BN = np.zeros((len(learning_BP), len(scored)), np.float32)
    signed_BN = np.zeros_like(positive_BN)
    for first in range(0, len(neuron_U), BLOCK):
        block = slice(first, first + BLOCK)
        plus_BU = learning_BP @ effective_UP[block].toarray().T + np.float32(EPS)
        minus_BU = learning_BP @ redundant_UP[block].toarray().T + np.float32(EPS)
        # tanh(log(x)) is (x^2 - 1) / (x^2 + 1).
        plus_BU *= plus_BU
        minus_BU *= minus_BU
        weight_BU = (plus_BU - minus_BU) / (plus_BU + minus_BU)  # Eq. 11
        mass_NU = mass_UN[block].toarray().T
        signed_BN += weight_BU @ mass_NU.T
        positive_BN += np.maximum(weight_BU, 0, out=weight_BU) @ mass_NU.T  # Eq. 12
    absolute_BN = 2 * positive_BN - signed_BN  # Eq. 13
    score_BN = np.zeros_like(absolute_BN)
    np.divide(positive_BN, absolute_BN, out=score_BN, where=absolute_BN > 0)  # Eq. 14
    return np.clip(score_BN, 0, 1).astype(np.float64)


def _columns(
    neuron_U: np.ndarray,
    neurons: Sequence[np.ndarray],
    values: Sequence[np.ndarray],
    owner_N: np.ndarray,
    n_owners: int,
) -> "csr_array":
    """float32_UO, sparse: the values of each owner's neurons, those in `neuron_U` (ascending);
    what belongs to one owner several times is summed."""
    from scipy.sparse import coo_array

    neuron_E = np.concatenate([np.zeros(0, np.int64), *neurons])
    value_E = np.concatenate([np.zeros(0), *values]).astype(np.float32)
    owner_E = np.repeat(owner_N, [len(neuron_K) for neuron_K in neurons])
    known_E = np.isin(neuron_E, neuron_U)
    cells = (np.searchsorted(neuron_U, neuron_E[known_E]), owner_E[known_E])
    return coo_array((value_E[known_E], cells), (len(neuron_U), n_owners)).tocsr()


# ---------------------------------------------------------------- sec. 4.4: baselines


def hes(entropy_T: np.ndarray) -> float:
    """High-entropy sum: the next-token entropies of a response summed, in nats."""
    return float(entropy_T.sum(dtype=np.float64))


def mean_logprob(logprob_T: np.ndarray) -> float:
    """Mean token log-probability under the generating model, in nats; nan for an empty response."""
    return float(logprob_T.mean(dtype=np.float64)) if len(logprob_T) else math.nan


def row_entropy(entropy_T: np.ndarray, tokens_R: np.ndarray) -> np.ndarray:
    """Mean next-token entropy of each row, float64_R in nats; `tokens_R` sums to the length of
    `entropy_T`, every row has a token."""
    total_T1 = np.concatenate([[0.0], np.cumsum(entropy_T, dtype=np.float64)])
    end_R = np.cumsum(tokens_R)
    return (total_T1[end_R] - total_T1[end_R - tokens_R]) / tokens_R


def entropy_rows(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Number of each response's rows whose entropy is above the 80th percentile of all rows given
    (Fig. 1a; the percentile is the reading of `entropy_top20`); nan for one without rows."""
    lengths = np.array([len(row_R) for row_R in rows], float)
    return entropy_top20(rows) * lengths


def entropy_top20(rows: Sequence[np.ndarray], *, pooled: bool = True) -> np.ndarray:
    """Share of each response's rows whose entropy is above the 80th percentile, one float64 per
    response; `rows` holds the row entropies of every response of every candidate, nan for one
    without rows.

    A reading: the percentile is that of all rows given, not of the response's own as the paper
    words it, because within a response the share is about 0.2 whatever the response is
    (`pooled=False`).
    """
    whole = np.concatenate(rows) if rows else np.zeros(0)
    bar = np.percentile(whole, 80) if len(whole) else math.nan
    return np.array(
        [
            np.mean(row_R > (bar if pooled else np.percentile(row_R, 80)))
            if len(row_R)
            else math.nan
            for row_R in rows
        ]
    )
