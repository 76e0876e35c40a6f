"""The model score where the prompts are others and the weights are learned anew from them."""

# Shapes: N responses, P prompts, B resamples, U neurons with evidence, K neurons of a response.

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from surgeon.nex.crediting import Evidence
from surgeon.nex.good_mass import counted
from surgeon.nex.presets import DEFAULT, EPS, Readings

if TYPE_CHECKING:
    from scipy.sparse import csr_array


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
