"""What chooses the units that move: a score per unit, from what is known of recipient and donor.

A selection is a function of `PairEvidence` that returns (L, F): units with a score above 0 qualify,
and `top_fraction` or `top_units` keep the highest. No label is used.

    effective, redundant     w and -w, w the donor's neuron weight (NEX sec. 5.5)
    mass                     w times the donor's activation mass on the mini-set
    difference               w times the length of the unit's difference between the two
    mass-difference          w times both
    attribution              how much likelier the donor's answers become in the recipient, to first
                             order, when the unit moves (`likelihood`)
    attribution-path         the same along the line from the recipient to all units moved
"""

# Shapes: L layers, F units per layer.

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from surgeon import lineage, named, store
from surgeon.errors import BadInput
from surgeon.neuron_weights import NeuronWeights
from surgeon.settings.transplant import TransplantSettings
from surgeon.traces import Trace, read_traces
from surgeon.transplant.difference import Difference
from surgeon.transplant.likelihood import gains
from surgeon.transplant.pair import Pair
from surgeon.transplant.units import mass_of

KEPT = 1
"""Changes with what is computed, so that the cache holds nothing of another version."""
PATH = (0.125, 0.375, 0.625, 0.875)
"""Shares of the way from the recipient to all units moved: the middles of four equal parts."""


@dataclass(frozen=True)
class PairEvidence:
    """What is known of the units of a pair; each part is computed when it is asked for."""

    settings: TransplantSettings
    pair: Pair
    weights: NeuronWeights
    """The donor's."""

    @property
    def weight_LF(self) -> np.ndarray:
        """float32 in [-1, 1] (NEX Eq. 11)."""
        return self.weights.weight_LF

    @property
    def mass_LF(self) -> np.ndarray:
        """float32 >= 0: mean activation mass on the mini-set; raises `BadInput` where it isn't
        recorded."""
        return mass_of(self.weights, f"--select {self.settings.selection.select}")

    @cached_property
    def difference_LF(self) -> np.ndarray:
        """float64 >= 0: length of donor less recipient, the unit's three projections in one
        vector."""
        difference = Difference(self.pair, whole=True)
        difference.share(self.pair.exists_LF)
        return np.sqrt(difference.energy_LF)

    def gains_LF(self, *shares: float) -> np.ndarray:
        """float64: gain in log-likelihood per token of the donor's answers for each unit that
        moves, from the slopes at these shares of the way to all of them moved.

        Kept in the cache: sizes, blends and controls of one pair ask for it again and again.
        """
        sources = (self.pair.recipient.digest, self.pair.donor.digest)
        read = lineage.file_digest(answers_file(self.settings, self.weights))
        place = [KEPT, *sources, read, *shares, self.settings.device]

        def make(directory: Path) -> None:
            found_LF = gains(self.pair, self.answers, shares, self.settings.device)
            save_file({"gain_LF": found_LF}, directory / "gains.safetensors")

        made = store.kept("attribution", lineage.digest_of(place), make)
        return load_file(made / "gains.safetensors")["gain_LF"]

    @property
    def answers(self) -> list[Trace]:
        """The donor's first finished answer to each prompt; raises `BadInput` without any."""
        file = answers_file(self.settings, self.weights)
        first: dict[str, Trace] = {}
        for trace in read_traces(file):
            if trace.finish_reason == "stop":
                first.setdefault(trace.prompt_id, trace)
        if not first:
            raise BadInput(f"{file} holds no finished answer, expected some of the donor's.")
        return list(first.values())


def answers_file(settings: TransplantSettings, weights: NeuronWeights) -> Path:
    """Where the donor's answers are; raises `BadInput` where they aren't."""
    file = weights.path.parent / "traces.jsonl"
    if settings.answers is not None:
        file = Path(settings.answers)
    if not file.is_file():
        raise BadInput(
            f"--select {settings.selection.select} reads the donor's answers, and {file} does not "
            "exist. Name a traces.jsonl of the donor with --answers."
        )
    return file


SelectionFunction = Callable[[PairEvidence], np.ndarray]
"""PairEvidence to a score (L, F)."""


def mass(evidence: PairEvidence) -> np.ndarray:
    """The neuron weight times the activation mass."""
    return evidence.weight_LF * evidence.mass_LF


def difference(evidence: PairEvidence) -> np.ndarray:
    """The neuron weight times the length of the difference."""
    return evidence.weight_LF * evidence.difference_LF


def mass_difference(evidence: PairEvidence) -> np.ndarray:
    """The neuron weight times activation mass times the length of the difference."""
    return mass(evidence) * evidence.difference_LF


def attribution(evidence: PairEvidence) -> np.ndarray:
    """The slope at the recipient."""
    return evidence.gains_LF(0.0)


def attribution_path(evidence: PairEvidence) -> np.ndarray:
    """The mean slope along the line (integrated gradients, Sundararajan et al. 2017)."""
    return evidence.gains_LF(*PATH)


SELECTIONS: dict[str, SelectionFunction] = {
    "effective": lambda evidence: evidence.weight_LF,
    "redundant": lambda evidence: -evidence.weight_LF,
    "mass": mass,
    "difference": difference,
    "mass-difference": mass_difference,
    "attribution": attribution,
    "attribution-path": attribution_path,
}
READ_ANSWERS = ("attribution", "attribution-path")
"""Selections whose result depends on the donor's answers."""


def scores(
    settings: TransplantSettings, pair: Pair, weights: NeuronWeights, function: SelectionFunction
) -> np.ndarray:
    """The selection's score (L, F); raises `BadInput` where a function of one's own breaks the
    rules."""
    score_LF = np.asarray(function(PairEvidence(settings, pair, weights)), dtype=np.float64)
    shape = weights.weight_LF.shape
    if score_LF.shape != shape or not np.isfinite(score_LF).all():
        raise BadInput(
            f"{settings.selection.select} must return finite scores of shape {list(shape)}; it "
            f"returned {'others' if score_LF.shape == shape else list(score_LF.shape)}."
        )
    return score_LF


def selection_of(name: str) -> SelectionFunction:
    """The selection of that name (`SELECTIONS` or `module:function`); raises `BadInput`."""
    return named.row(SELECTIONS, name, "select")
