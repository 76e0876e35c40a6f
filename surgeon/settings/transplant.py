"""What `surgeon transplant` is asked to do."""

from typing import Annotated, Literal

from annotated_types import Ge, Lt

from surgeon.errors import BadInput
from surgeon.settings.schema import (
    RECORDED_WHERE_SET,
    UNRECORDED,
    Count,
    File,
    Metavar,
    Out,
    Probability,
    Share,
    Switches,
    settings,
)

SIGNED = ("effective", "redundant")
SIGNS = Switches(
    {
        "effective": ("effective", "Units with a weight above 0 (the default)."),
        "redundant": ("redundant", "Units with a weight below 0."),
    },
    named=True,
)
Parent = Annotated[str | object, Metavar("CHECKPOINT"), UNRECORDED]
"""What names a checkpoint; in Python also an open `Checkpoint`."""


@settings
class UnitSelection:
    """Which units move: by a score of theirs, or others in their place."""

    select: Annotated[str, SIGNS, Metavar("NAME")] = "effective"
    """What chooses: effective or redundant (the sign of the weights), mass, difference or
    mass-difference (the weight times one of these), attribution or attribution-path (what makes
    the donor's answers likelier in the recipient), or module:function."""
    control: Literal["random", "random-active", "random-mass", "mass-matched"] | None = None
    """Other units instead: as many at random in each layer, as many of those that were active,
    active ones of as much activation mass, or the chosen ones cut down to the activation mass of
    the other sign."""
    threshold: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Least absolute weight."""
    top_fraction: Probability | None = None
    """Only this share of the units, highest score first."""
    top_units: Annotated[Count | None, RECORDED_WHERE_SET] = None
    """Only this many units, highest score first."""
    budget: Literal["global", "layer"] = "global"
    """Whether top_fraction and top_units count over all layers or in each."""
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
    with_attention: Annotated[bool, RECORDED_WHERE_SET] = False
    """Do the same to the attention of every layer that has units that move."""
    match: Literal["permutation"] | None = None
    """permutation: align the donor's units to the recipient's first."""
    weights_from_other: Annotated[bool, UNRECORDED] = False
    """Accept weights that were computed on another checkpoint."""
    recipient_weights: Annotated[File | None, UNRECORDED] = None
    """The recipient's own weights, for the share of its activation mass that moves."""
    answers: Annotated[File | None, UNRECORDED] = None
    """The donor's answers, for attribution: traces.jsonl; those beside the weights where it isn't
    given."""
    seed: Annotated[int, UNRECORDED] = 0
    """Seed of everything random."""
    dry_run: Annotated[bool, UNRECORDED] = False
    """Print what would move; write nothing."""
    device: Annotated[str, UNRECORDED] = "auto"
    """Where attribution reads the answers: auto, cpu, cuda, cuda:1, ..."""
    out: Out | None = None
    """Directory to write; nothing is written elsewhere."""

    def __post_init__(self) -> None:
        chosen, has_mask = self.selection, self.mask is not None
        if self.weights is None and not has_mask:
            raise BadInput("choose neurons with --weights (a ranking's directory) or --mask.")
        most = (chosen.top_fraction, chosen.top_units)
        if has_mask and (chosen.threshold or most != (None, None)):
            raise BadInput(
                "--threshold, --top-fraction and --top-units select by weight; leave out --mask."
            )
        if None not in most:
            raise BadInput("found top_fraction and top_units, expected one of them.")
        if has_mask and chosen.control == "mass-matched":
            raise BadInput("mass-matched compares the two signs of weights; leave out --mask.")
        if self.weights is None and chosen.control in ("random-active", "random-mass"):
            raise BadInput(f"{chosen.control} needs --weights, which say which units were active.")
        if chosen.select not in SIGNED:
            if has_mask:
                raise BadInput(f"found select = {chosen.select} and a mask, expected one of them.")
            if chosen.threshold or chosen.control == "mass-matched":
                raise BadInput(
                    "threshold and mass-matched are for effective and redundant units, which have "
                    f"a sign; found select = {chosen.select}. Use --top-fraction or --top-units."
                )
            if self.match is not None:
                raise BadInput(
                    f"found match = {self.match} and select = {chosen.select}, expected effective, "
                    "redundant or a mask: others may compare units of the same number."
                )
        if self.out is None and not self.dry_run:
            raise BadInput("transplant needs --out, the directory to write (or --dry-run).")

    def units_in_words(self) -> str:
        """Which units move, in a line for a report."""
        chosen = self.selection
        above = f" with |w| > {chosen.threshold:g}" if chosen.threshold else ""
        words = f"{chosen.select} units{above}"
        if self.mask is not None:
            words = "the units of the mask"
        elif chosen.select not in SIGNED:
            words = f"units by {chosen.select}"
        within = " of each layer" if chosen.budget == "layer" else ""
        if chosen.top_fraction is not None:
            words = f"the strongest {chosen.top_fraction:g} of the {words}{within}"
        if chosen.top_units is not None:
            words = f"the strongest {chosen.top_units} {words}{within}"
        if chosen.layers is not None:
            words += f", layers {chosen.layers}"
        if chosen.control is not None:
            words = f"{chosen.control} control (seed {self.seed}) for {words}"
        return words
