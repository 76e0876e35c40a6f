"""What `surgeon trigger identify` can be asked to do."""

from typing import Annotated, Literal

from surgeon.errors import BadInput
from surgeon.settings.sampling import Machine
from surgeon.settings.schema import (
    POSITIONAL,
    SHARED,
    UNRECORDED,
    Amount,
    Count,
    Directory,
    Number,
    Out,
    Positive,
    settings,
)


@settings
class IdentifySettings:
    """Find the units and heads that push the model towards its failing steps.

    Writes channels.json.
    """

    checkpoint: Annotated[str, POSITIONAL]
    """Whose units and heads."""
    labels: Directory
    """What `surgeon trigger label` wrote."""
    out: Out
    """Directory to write."""
    method: Literal["direct", "adjoint", "softmax"] = "direct"
    """The logit lens (direct), DePass by the ratio rule (adjoint), or DePass on a shortlist
    (softmax)."""
    layer: Number | None = None
    """Which layer; by default the middle one."""
    k: Positive = 0.25
    """Highest attributions of a token that count; below 1: that share of all."""
    attempt_steps: Count = 1
    """inter: steps at the beginning of each attempt whose tokens are attributed."""
    contrast: Literal["none", "count", "drop"] = "count"
    """What is done with components that persist through a failing span and through its counterpart:
    nothing (none), they are counted (count), or left out (drop; failing spans without a counterpart
    then don't vote)."""
    spans: Count = 64
    """Most failing spans per level."""
    channels: Count = 32
    """Most channels per level."""
    shortlist: Number = 0
    """softmax: components that are looked at; 0: four times k."""
    temperature: Amount = 0.1
    """softmax: of the assignment of attributions."""
    seed: Annotated[int, SHARED, UNRECORDED] = 0
    """Seed of the choice of spans."""
    machine: Machine = Machine()

    def __post_init__(self) -> None:
        """Raise BadInput for a number of components that is no number."""
        if self.k >= 1 and self.k != int(self.k):
            raise BadInput(
                f"found k = {self.k}, expected a whole number, or a share between 0 and 1."
            )
