"""What a model says of answers: one recorded pass and one sparse dot product each (NEX sec. A.6).

No phases are decoded here: those are needed to learn weights, not to use them.
"""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from surgeon import evidence_file, nex
from surgeon.checkpoint import Checkpoint
from surgeon.consensus import contribution_sets
from surgeon.neuron_weights import recorded_top_k
from surgeon.settings.nopsd import NopsdReadings
from surgeon.traces import Trace
from surgeon.traces.records import Key

if TYPE_CHECKING:
    from torch import nn

Values = dict[str, Any]
"""What is known of one answer, by name."""


class Asked(NamedTuple):
    """What a model is asked of answers."""

    recording: bool
    """nex (with weights), hes and logprob."""
    sets: bool
    """consensus, which takes a pass of its own."""
    weight_N: np.ndarray | None
    """float32, the neuron weights."""
    top_k: int
    """Activations kept per token."""
    consensus_top: float
    """Neurons kept per token for consensus; below 1 a share of all."""


def read_values(model: "nn.Module", traces: Sequence[Trace], asked: Asked) -> list[Values]:
    """nex, hes, logprob and consensus of some answers, as far as they are asked for."""
    from surgeon.activations import record

    values: list[Values] = [{} for _ in traces]
    if asked.recording:
        for row, recording in zip(values, record(model, traces, top_k=asked.top_k), strict=True):
            row["hes"] = float(nex.hes(recording.entropy_T))
            row["logprob"] = float(nex.mean_logprob(recording.logprob_T))
            if asked.weight_N is not None:
                neuron_K, mass_K = nex.response_mass(recording.activations)
                row["nex"] = good_mass(neuron_K, mass_K, asked.weight_N)
    if asked.sets:
        sets = contribution_sets(model, traces, NopsdReadings(top_global=asked.consensus_top))
        for row, one in zip(values, sets, strict=True):
            row["consensus"] = one.consensus
    return values


def recorded_alike(asked: int | float | str, reader: Checkpoint, weights: Path | None) -> int:
    """Activations of a reader that are kept per token: a count, a share, or (auto) as many as the
    ranking of the weights kept; the paper's share where no ranking says so."""
    from surgeon.activations import kept_per_token

    if isinstance(asked, int):
        return asked
    if isinstance(asked, float):
        return kept_per_token(reader.passed_units, asked)
    recorded = None if weights is None else recorded_top_k(weights)
    return recorded or kept_per_token(reader.passed_units)


def good_mass(neuron_K: np.ndarray, mass_K: np.ndarray, weight_N: np.ndarray) -> float | None:
    """The Good-Mass Fraction of one response (NEX Eq. 12-14); None without any mass."""
    return nex.good_mass_fraction(neuron_K, mass_K, weight_N).score if len(neuron_K) else None


def good_masses(file: Path, weight_N: np.ndarray) -> Iterator[tuple[Key, float | None]]:
    """The Good-Mass Fraction of every response whose mass a file keeps; None without any mass."""
    for prompt_id, sample, neuron_K, mass_K in evidence_file.masses(file):
        yield (prompt_id, sample), good_mass(neuron_K, mass_K, weight_N)


def needs_model(needed: Collection[str], *, kept: bool) -> bool:
    """Whether rules with these needs read the answers with a model; `kept`: a ranking kept what a
    recording says."""
    return "sets" in needed or (not kept and bool({"weights", "recording"} & set(needed)))
