"""What `surgeon transplant` is asked to do."""

from typing import Annotated, Literal

from annotated_types import Ge, Lt

from surgeon.errors import BadInput
from surgeon.settings.schema import (
    UNRECORDED,
    File,
    Metavar,
    Out,
    Probability,
    Share,
    Switches,
    settings,
)

Sign = Literal["effective", "redundant"]
SIGNS = Switches(
    {
        "effective": ("effective", "Units with a weight above 0 (the default)."),
        "redundant": ("redundant", "Units with a weight below 0."),
    }
)
Parent = Annotated[str | object, Metavar("CHECKPOINT"), UNRECORDED]
"""What names a checkpoint; in Python also an open `Checkpoint`."""


@settings
class UnitSelection:
    """Which units move: by the sign of their weight, or others in their place."""

    select: Annotated[Sign, SIGNS] = "effective"
    """The sign of the weights."""
    control: Literal["random", "random-active", "mass-matched"] | None = None
    """Other units instead: as many at random in each layer, as many of those that were active, or
    the chosen ones cut down to the activation mass of the other sign."""
    threshold: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Least absolute weight."""
    top_fraction: Probability | None = None
    """Only this share of the units, heaviest first."""
    budget: Literal["global", "layer"] = "global"
    """Whether top_fraction counts over all layers or in each."""
    layers: Annotated[str | None, Metavar("8-23,30")] = None
    """Only units of these layers."""


@settings
class TransplantSettings:
    """Move effective or redundant FFN neurons from a donor into a copy of a recipient."""

    recipient: Parent
    """The checkpoint that is copied and changed."""
    donor: Parent | None = None
    """Where the units come from; a surgery such as ablate needs none."""
    weights: Annotated[str | None, Metavar("RANKING[#NAME]|FILE"), UNRECORDED] = None
    """Neuron weights of the donor: a ranking's candidate, or weights.safetensors."""
    mask: Annotated[str | object | None, Metavar("FILE"), UNRECORDED] = None
    """Choose the units by mask_LF of a safetensors file; in Python also an array (L, F) of bool."""
    selection: UnitSelection = UnitSelection()
    surgery: str = "replace"
    """replace, blend, swap (writes OUT/recipient and OUT/donor), ablate, or module:function."""
    alpha: Share = 1.0
    """Share of the donor in a blend."""
    match: Literal["permutation"] | None = None
    """permutation: align the donor's units to the recipient's first."""
    weights_from_other: Annotated[bool, UNRECORDED] = False
    """Accept weights that were computed on another checkpoint."""
    recipient_weights: Annotated[File | None, UNRECORDED] = None
    """The recipient's own weights, for the share of its activation mass that moves."""
    seed: Annotated[int, UNRECORDED] = 0
    """Seed of everything random."""
    dry_run: Annotated[bool, UNRECORDED] = False
    """Print what would move; write nothing."""
    out: Out | None = None
    """Directory to write; nothing is written elsewhere."""

    def __post_init__(self) -> None:
        chosen, has_mask = self.selection, self.mask is not None
        if self.weights is None and not has_mask:
            raise BadInput("choose neurons with --weights (a ranking's directory) or --mask.")
        if has_mask and (chosen.threshold or chosen.top_fraction is not None):
            raise BadInput("--threshold and --top-fraction select by weight; leave out --mask.")
        if has_mask and chosen.control == "mass-matched":
            raise BadInput("mass-matched compares the two signs of weights; leave out --mask.")
        if self.weights is None and chosen.control == "random-active":
            raise BadInput("random-active needs --weights, which say which units were active.")
        if self.out is None and not self.dry_run:
            raise BadInput("transplant needs --out, the directory to write (or --dry-run).")

    def units_in_words(self) -> str:
        """Which units move, in a line for a report."""
        chosen = self.selection
        above = f" with |w| > {chosen.threshold:g}" if chosen.threshold else ""
        words = f"{chosen.select} units{above}" if self.mask is None else "the units of the mask"
        if chosen.top_fraction is not None:
            within = " of each layer" if chosen.budget == "layer" else ""
            words = f"the strongest {chosen.top_fraction:g} of the {words}{within}"
        if chosen.layers is not None:
            words += f", layers {chosen.layers}"
        if chosen.control is not None:
            words = f"{chosen.control} control (seed {self.seed}) for {words}"
        return words
