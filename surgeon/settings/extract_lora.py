"""Settings of `surgeon extract-lora`."""

from typing import Annotated, Literal

from surgeon.errors import BadInput
from surgeon.settings.sampling import Machine
from surgeon.settings.schema import (
    POSITIONAL,
    UNRECORDED,
    Count,
    Metavar,
    Out,
    Probability,
    settings,
)


@settings
class ExtractLoraSettings:
    """Write what a checkpoint changed in its base as a LoRA adapter, with the error that makes.

    For any checkpoint of the base's shape: a merge, a transplant, a distilled model. The adapter
    loads in PEFT, and as BASE+OUT here.
    """

    checkpoint: Annotated[str, Metavar("CHECKPOINT"), POSITIONAL, UNRECORDED]
    """The checkpoint that the adapter is to make of its base."""
    base: Annotated[str, Metavar("BASE"), UNRECORDED]
    """The checkpoint that the adapter will be added to."""
    out: Out
    """The directory to write."""
    rank: Count | None = None
    """Rank of every module's change; smaller where the matrix is."""
    energy: Probability | None = None
    """Least share of each module's squared change that its rank holds, such as 0.99."""
    rest: Literal["save", "leave"] = "save"
    """What LoRA can't hold (embeddings, norms): save these modules whole (modules_to_save), or
    leave the base's."""
    mini_set: Annotated[str | None, Metavar("FILE"), UNRECORDED] = None
    """Prompts on which the logits of both are compared, in any form that rank takes."""
    machine: Machine = Machine()

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.energy is None):
            found = "neither" if self.rank is None else "both"
            raise BadInput(
                f"found {found} of rank and energy, expected one: --rank N or --energy 0.99."
            )
