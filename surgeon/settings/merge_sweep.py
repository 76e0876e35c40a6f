"""What `surgeon merge-sweep` is asked to do."""

from typing import Annotated, Literal

from surgeon.errors import BadInput
from surgeon.settings.schema import POSITIONAL, UNRECORDED, File, Many, Metavar, Out, settings
from surgeon.settings.workforce import Workforce

Side = Literal["first", "second"]


@settings
class MergeSweepSettings:
    """Merge checkpoints A and B into a family of candidates between them."""

    a: Annotated[str | None, POSITIONAL, UNRECORDED, Metavar("A")] = None
    """The first endpoint: a directory, a hub id, BASE+ADAPTER or builtin:NAME."""
    b: Annotated[str | None, POSITIONAL, UNRECORDED, Metavar("B")] = None
    """The second endpoint."""
    more: Annotated[Many[str], POSITIONAL, UNRECORDED, Metavar("C...")] = ()
    """With uniform: further checkpoints, or those of a training run (RUN/checkpoint-*)."""
    out: Out
    """Directory to write; nothing is written elsewhere."""
    method: Annotated[Many[str], Metavar("METHOD")] = ("slerp",)
    """slerp, linear, or module:function."""
    ratios: Annotated[str, Metavar("START:STOP:STEP")] = "0.05:0.95:0.05"
    """Shares of B, or a comma list; 0 and 1 (A and B) always belong to the family."""
    config: File | None = None
    """A family of any mergekit config, in place of method and ratios: merges/*.yaml."""
    virtual: bool = False
    """Write only the description; candidates are merged in memory when they are used."""
    dry_run: Annotated[bool, UNRECORDED] = False
    """Print the checks and the plan; write nothing."""
    dtype: Literal["float64", "float32", "float16", "bfloat16"] | None = None
    """Dtype of the merged weights; by default that of A. With another one, ratios 0 and 1 are
    merged like the rest."""
    tokenizer: Side | None = None
    """Whose tokenizer the candidates get; needed only where the vocabularies differ."""
    vocabulary: Literal["crop", "pad", "union"] | None = None
    """How vocabularies of different size become one: crop or pad rows that stand for no token
    (padding with the other's), or take the union of both tokenizers, as mergekit does."""
    template: Side = "first"
    """Whose chat template they get."""
    generation: Side = "first"
    """Whose generation config they get."""
    engine: Literal["fast", "mergekit"] = "fast"
    """mergekit: let mergekit write all candidates, also those that are merged here faster."""
    smoke: Annotated[bool, UNRECORDED] = True
    """Load every candidate and let it generate before it gets its name."""
    seed: int = 0
    """Seed of mergekit's methods that draw at random."""
    uniform: bool = False
    """Average all checkpoints that are named, two or more, instead of merging two at many
    ratios."""
    workforce: Workforce = Workforce()

    def __post_init__(self) -> None:
        if self.more and not self.uniform:
            raise BadInput(
                f"found {2 + len(self.more)} checkpoints, expected two endpoints. Give --uniform "
                "to average them all, or a --config that names the others."
            )
        if self.uniform and self.config is not None:
            raise BadInput("found uniform and config, expected one of them: both name a merge.")
