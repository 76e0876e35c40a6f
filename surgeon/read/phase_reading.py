"""read.json: what a reading says of all responses together."""

from dataclasses import field
from pathlib import Path

from surgeon import artifact
from surgeon.read.agreeing import AnnotatorPair, LabelAgreement
from surgeon.read.phase_entropy import PhaseEntropy


@artifact.artifact("read.json")
class PhaseReading:
    """What `surgeon read` found."""

    ranking: str
    row_tokens: int
    candidates: tuple[PhaseEntropy, ...]
    """In the ranking's order."""
    agreement: tuple[LabelAgreement, ...] = ()
    """The phases against labels of blocks, by annotator."""
    annotators: tuple[AnnotatorPair, ...] = ()
    """Annotators against each other."""
    labelling: dict[str, str] = field(default_factory=dict)
    """What was asked of labels."""
    warnings: tuple[str, ...]
    out: artifact.Out = Path()
    already: artifact.Already = False
