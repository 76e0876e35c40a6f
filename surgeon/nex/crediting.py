"""What a response says about the neurons that its cycles introduce (NEX sec. 3.2)."""

# Shapes: E stored entries (row, neuron), R rows, R1 rows + 1, N all neurons, K neurons kept,
# X entries of an X phase.

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from surgeon.nex.exploring import Cycle, cycles, first_seen, novelty, phases, span_of
from surgeon.nex.presets import DEFAULT, EPS, FAINT, Readings

if TYPE_CHECKING:
    from surgeon.activations import Activations


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
    effective_N, redundant_N, faint_N = np.zeros((3, span_of(acts)))
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
    mark_N = np.zeros(span_of(acts), np.int32)
    median_slope = np.median(slope_R) if len(slope_R) else 0.0
    over_all = readings.reuse_median_over == "all"  # R2
    found: list[CycleReading] = []
    for i, (e, x) in enumerate(cycles(explore_R), start=1):
        slope_e, slope_x = np.median(slope_R[e]), np.median(slope_R[x])
        if readings.credit == "introduced":
            new_K = first_K[first_R1[e.start] : first_R1[e.stop]]
            neuron_K, mass_K = acts.neuron_E[new_K], acts.mass_E[new_K].astype(float)  # Eq. 2
        else:
            neuron_K, mass_K = summed(acts, e)
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


def summed(acts: "Activations", rows: slice) -> tuple[np.ndarray, np.ndarray]:
    """Neurons with mass in these rows (int64_K ascending) and that mass, summed (float64_K)."""
    span = slice(acts.start_R1[rows.start], acts.start_R1[rows.stop])
    mass_N = np.bincount(acts.neuron_E[span], weights=acts.mass_E[span])
    neuron_K = np.flatnonzero(mass_N)
    return neuron_K, mass_N[neuron_K]
