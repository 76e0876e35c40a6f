"""What `surgeon trigger reconstruct` can be asked to do."""

from typing import Annotated, Literal

from surgeon.errors import BadInput
from surgeon.settings.asking import EndpointSettings
from surgeon.settings.neureasoner import STEPWISE, StepLevel
from surgeon.settings.sampling import AnswerReading
from surgeon.settings.schema import (
    POSITIONAL,
    UNRECORDED,
    Amount,
    Count,
    Directory,
    Many,
    Metavar,
    Out,
    Share,
    settings,
)


@settings
class ReconstructSettings:
    """Write examples in which a trigger follows a failing step, and a repair the trigger.

    Writes examples.jsonl and reconstruct.json.
    """

    checkpoint: Annotated[str, POSITIONAL]
    """Whose traces they are."""
    labels: Directory
    """What `surgeon trigger label` wrote."""
    out: Out
    """Directory to write."""
    source: Annotated[str, Metavar("builtin|URL#MODEL|MODULE:FUNCTION|FILE")] = "builtin"
    """Who writes: the built-in task, a model at an endpoint, a function, or a JSONL file of repairs
    that were written before (prompt_id, sample, level, diagnose, continuation)."""
    source_temperature: Amount | None = None
    """Sampling temperature of an endpoint; by default its own."""
    failures: Literal["both", "own", "made"] = "both"
    """The trace's own failing steps, failures that the source makes up, or both."""
    levels: Many[StepLevel] = STEPWISE
    """Failure levels that get examples."""
    limit: Count | None = None
    """Only the first examples, so many."""
    most_unusable: Annotated[Share, UNRECORDED] = 0.1
    """Share of the examples that may stay without a usable reply: they are left out and counted;
    above it the run stops."""
    answer: str = "auto"
    """How the final answer is read; see `surgeon evaluate`."""
    seed: Annotated[int, UNRECORDED] = 0
    """Seed of everything random."""
    reading: AnswerReading = AnswerReading()
    endpoint: EndpointSettings = EndpointSettings()

    def __post_init__(self) -> None:
        """Raise BadInput for no level."""
        if not self.levels:
            raise BadInput(f"found levels = (), expected some of: {', '.join(STEPWISE)}.")
