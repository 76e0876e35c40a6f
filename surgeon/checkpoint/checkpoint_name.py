"""A checkpoint as a result names it."""

from typing import Self

from surgeon.artifact import part
from surgeon.checkpoint.directory import Checkpoint


@part
class CheckpointName:
    """Which checkpoint a result is about, or was made of."""

    spec: str
    """As the user named it."""
    digest: str

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Self:
        return cls(spec=checkpoint.spec, digest=checkpoint.digest)
