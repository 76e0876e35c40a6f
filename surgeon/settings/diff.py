"""What `surgeon diff` can be asked to do."""

from typing import Annotated

from surgeon.settings.schema import POSITIONAL, UNRECORDED, Metavar, Number, Out, settings


@settings
class DiffSettings:
    """Say where two checkpoints differ, and what that means for a merge, a transplant, or RL.

    By layer and block: how far the weights moved, the angle, and how many stayed as they are; FFN
    units that changed places; tokenizer, chat template, generation config. Both are read in
    pieces; no model is loaded.
    """

    first: Annotated[str, POSITIONAL, UNRECORDED, Metavar("A")]
    """The first: a directory, a hub id, BASE+ADAPTER, builtin:NAME, a GGUF file, or
    DIR/family.json#CANDIDATE."""
    second: Annotated[str, POSITIONAL, UNRECORDED, Metavar("B")]
    """The second: what became of the first, where one came of the other."""
    out: Out | None = None
    """Directory to write diff.json and a page with heat maps to; without it the table is only
    printed."""
    units: Number = 64
    """FFN units of each layer that are looked for among the other's; 0 for none."""
