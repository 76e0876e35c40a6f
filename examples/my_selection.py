"""A selection of your own: `surgeon transplant --select examples.my_selection:changed ...`.

A selection gets what is known of recipient and donor (`PairEvidence`: the donor's neuron weights,
its activation mass on the mini-set, the length of each unit's difference, attribution towards the
donor's answers) and returns a score per unit, (L, F). Units with a score above 0 qualify;
`--top-fraction` and `--top-units` keep the highest. What isn't asked for isn't computed.
"""

import numpy as np

from surgeon.transplant.selections import PairEvidence


def changed(evidence: PairEvidence) -> np.ndarray:
    """How far a unit is from the recipient's, where it was active at all; its weight plays no
    part."""
    return np.where(evidence.mass_LF > 0, evidence.difference_LF, 0.0)
