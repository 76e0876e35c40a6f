"""Neuron weights of a mini-set, and the Good-Mass Fraction of a response (NEX sec. 3.3)."""

# Shapes: N all neurons, K neurons of a response.

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from surgeon.nex.crediting import Evidence, summed
from surgeon.nex.presets import DEFAULT, EPS, Readings

if TYPE_CHECKING:
    from surgeon.activations import Activations


def response_mass(acts: "Activations") -> tuple[np.ndarray, np.ndarray]:
    """b_k of sec. 3.3: the neurons used (int64_K ascending) and their mass over the response
    (float32_K)."""
    neuron_K, mass_K = summed(acts, slice(0, len(acts.tokens_R)))
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
