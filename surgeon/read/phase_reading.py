"""read.json: what a reading says of all responses together."""

from pathlib import Path

from surgeon import artifact
from surgeon.read.phase_entropy import PhaseEntropy


@artifact.artifact("read.json")
class PhaseReading:
    """What `surgeon read` found."""

    ranking: str
    row_tokens: int
    candidates: tuple[PhaseEntropy, ...]
    """In the ranking's order."""
    warnings: tuple[str, ...]
    out: artifact.Out = Path()
    already: artifact.Already = False
