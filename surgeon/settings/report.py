"""What `surgeon report` can be asked to do."""

from typing import Annotated

from surgeon.settings.schema import POSITIONAL, UNRECORDED, Many, Metavar, Out, settings


@settings
class ReportSettings:
    """Put all that was made of a family on one page: accuracy against tokens, and where it came
    from.

    Evaluations, rankings, monitored runs, and whatever transplant, distill, sft and the others
    wrote. A task's accuracies and a mini-set's estimates have a chart each, with the checkpoints
    that no other beats in both.
    """

    runs: Annotated[Many[str], POSITIONAL, UNRECORDED, Metavar("RUN...")]
    """Directories that commands wrote, or directories of such directories."""
    out: Out
    """Directory to write: report.html, which opens offline, and overview.json."""
