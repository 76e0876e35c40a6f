"""What a transplant moved, or would move in a dry run."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from surgeon import artifact


@artifact.part
class Similarity:
    """Mean cosine between units of two checkpoints, each [gate | up | down] in one vector."""

    same: float
    """Between units of the same number."""
    shuffled: float
    """Between units of different numbers: what unrelated models would show."""

    @property
    def low(self) -> bool:
        """True when same-numbered units are nearer to strangers than to copies of each other."""
        return self.same - self.shuffled < 0.5 * (1 - self.shuffled)


@artifact.artifact("transplant.json")
class TransplantReport:
    """What moved, and what that amounts to."""

    out: Annotated[Path | None, Field(exclude=True)] = None
    """Where the result is; None for a dry run."""
    already: artifact.Already = False
    recipient: str
    donor: str
    """Empty for a surgery without a donor."""
    surgery: str
    alpha: float
    selection: str
    """In words: sign or mask, threshold, share, layers, control, seed."""
    weights: str = ""
    """Whose neuron weights chose, and their file; empty for a mask, and in reports of a version
    that didn't say."""
    units_L: tuple[int, ...]
    parameters_L: tuple[int, ...]
    """Parameters in the units that move."""
    of_units_L: tuple[int, ...]
    attention_parameters: int = 0
    """Parameters in the attention that moves with them."""
    mass_share: float | None
    """Share that the units carry of the activation mass that the ranking's top-k kept on the
    mini-set; None if not recorded."""
    positive_share: float | None = None
    """Share of all positive activation mass on the mini-set; None if not recorded."""
    mass_of: str
    """`recipient` or `donor`: whose activation mass that is."""
    difference_share: float | None
    """Share of the squared difference of all compared FFN weights that lies in the units."""
    difference_sampled: bool
    """Whether that share is an estimate from a part of each large projection."""
    outside_share: float | None = None
    """Share of the whole squared difference that lies outside the FFN units, where no transplant
    reaches; None with matching, or where a tensor has no partner of its name and shape."""
    similarity: Similarity | None
    """Of units of the same number; None for a surgery without a donor."""
    matched_similarity: float | None
    """Mean cosine after matching; None without it."""
    warnings: tuple[str, ...]

    @property
    def units(self) -> int:
        """Units that move."""
        return sum(self.units_L)

    @property
    def parameters(self) -> int:
        """Parameters in them."""
        return sum(self.parameters_L)

    def lines(self) -> list[str]:
        """The report as text, one line per layer."""
        what = self.surgery + (f" with alpha {self.alpha:g}" if self.alpha != 1 else "")
        source = f"{self.donor} -> {self.recipient}" if self.donor else self.recipient
        rows = zip(self.units_L, self.of_units_L, self.parameters_L, strict=True)
        everything = sum(self.of_units_L)
        return [
            f"{source}: {what}",
            f"chosen: {self.selection}",
            *([f"neuron weights: of {self.weights}"] if self.weights else []),
            "layer    units       of  params",
            *(
                f"{layer:5d} {units:8,d} {of:8,d}  {parameters:,d}"
                for layer, (units, of, parameters) in enumerate(rows)
            ),
            f"total: {self.units:,d} of {everything:,d} units "
            f"({self.units / max(1, everything):.1%}), {self.parameters:,d} parameters",
            *self._attention(),
            *self._shares(),
            *self._similarities(),
            *(f"warning: {warning}" for warning in self.warnings),
        ]

    def _attention(self) -> list[str]:
        if not self.attention_parameters:
            return []
        return [
            f"attention of the layers with such units: {self.attention_parameters:,d} parameters"
        ]

    def _shares(self) -> list[str]:
        if self.mass_share is None:
            lines = ["activation mass: not recorded in the weights given"]
        else:
            absent = "" if self.mass_of == "recipient" else " (the recipient's was not given)"
            of_all = "; of all positive mass: not recorded in these weights"
            if self.positive_share is not None:
                of_all = f"; {self.positive_share:.1%} of all positive mass"
            lines = [
                f"activation mass: {self.mass_share:.1%} of the {self.mass_of}'s that the top-k "
                f"kept on the mini-set{of_all}{absent}"
            ]
        sampled = " (estimated from a part of each)" if self.difference_sampled else ""
        if self.difference_share is not None:
            where = " of the FFNs matched" if self.matched_similarity is not None else ""
            lines.append(
                f"weight difference: {self.difference_share:.1%} of the squared difference of the "
                f"FFN weights{where} lies in these units{sampled}"
            )
        if self.outside_share is not None:
            moves = "of which only the attention above moves"
            stays = (
                moves if self.attention_parameters else "which stays behind whichever units move"
            )
            lines.append(
                f"outside the FFN: {self.outside_share:.1%} of the whole squared difference "
                f"(attention, embedding, norms), {stays}{sampled}"
            )
        return lines

    def _similarities(self) -> list[str]:
        if self.similarity is None:
            return []
        lines = [
            f"similarity: units of the same number have mean cosine {self.similarity.same:.4f}, "
            f"of different numbers {self.similarity.shuffled:.4f}"
        ]
        if self.matched_similarity is not None:
            lines.append(
                f"matching: raised the mean cosine from {self.similarity.same:.4f} to "
                f"{self.matched_similarity:.4f}"
            )
        return lines
