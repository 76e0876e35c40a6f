"""What `surgeon soup` can be asked to do."""

from typing import Annotated

from annotated_types import Ge

from surgeon.settings.sampling import Machine
from surgeon.settings.schema import POSITIONAL, UNRECORDED, Metavar, Out, settings


@settings
class SoupSettings:
    """Average the best checkpoints of a ranking, as long as the estimated accuracy doesn't fall.

    A greedy soup (Wortsman et al. 2022) without labels: the checkpoints join by their estimated
    accuracy, the best first, each only where the average with it is estimated to be as good as
    without. Every average answers the ranking's prompts, and the checkpoints' answers vote on it.
    """

    ranking: Annotated[str, POSITIONAL, UNRECORDED, Metavar("RANKING")]
    """The directory of a ranking of three or more checkpoints of one shape."""
    out: Out
    """Directory to write: the soup is OUT/checkpoint."""
    most: Annotated[int, Ge(2)] | None = None
    """Checkpoints that are tried, the best first; by default all of the ranking."""
    machine: Machine = Machine()
