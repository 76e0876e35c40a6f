"""What `surgeon trigger reconstruct` can be asked to do."""

from typing import Annotated, Literal

from surgeon.errors import BadInput
from surgeon.settings.asking import EndpointSettings
from surgeon.settings.neureasoner import STEPWISE, StepLevel
from surgeon.settings.sampling import AnswerReading, Columns
from surgeon.settings.schema import (
    POSITIONAL,
    UNRECORDED,
    Amount,
    Count,
    Directory,
    File,
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
    labels: Directory | None = None
    """What `surgeon trigger label` wrote."""
    corpus: File | None = None
    """References instead, in which failures are made up: rows with a question and its reasoning (or
    response), or conversations; a file, builtin:NAME, or a data set on the hub. No labels are
    needed."""
    columns: Columns = None
    """Columns of the corpus with other names than the usual ones: prompt=problem,answer=solution,
    of prompt, messages, answer, id, tools and system."""
    out: Out
    """Directory to write."""
    exclude: Annotated[Many[str], Metavar("FILE"), UNRECORDED] = ()
    """Prompt sets that must not be learned, such as the tasks that the result is measured on:
    prompts of the same id, and those that share 13 words in a row, are left out."""
    signal: bool | None = None
    """Put the paper's fixed sentence between trigger and diagnosis (Eq. 5); by default where an
    endpoint or a file says how a failure is mended."""
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
        """Raise BadInput for no level, and unless there is one source of traces."""
        if (self.labels is None) == (self.corpus is None):
            raise BadInput(
                "expected either labels (of the checkpoint's own traces) or a corpus (reference "
                "reasoning of any origin). Give one of them."
            )
        if self.corpus is not None and self.failures == "own":
            raise BadInput(
                "found failures = own and a corpus, expected both or made: references have no "
                "failures of their own."
            )
        if not self.levels:
            raise BadInput(f"found levels = (), expected some of: {', '.join(STEPWISE)}.")
