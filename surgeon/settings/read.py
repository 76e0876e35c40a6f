"""Settings of `surgeon read`."""

from typing import Annotated

from surgeon.settings.sampling import Machine
from surgeon.settings.schema import (
    POSITIONAL,
    UNRECORDED,
    Many,
    Metavar,
    Out,
    settings,
)


@settings
class ReadSettings:
    """Read every response of a ranking: its slope, its phases and the verdict on each cycle.

    Writes report.html, which opens offline and shows any response, cycles.jsonl, and what each
    phase and the entropy have in common (NEX Tab. 5).
    """

    ranking: Annotated[str, POSITIONAL, UNRECORDED, Metavar("RANKING")]
    """The directory of a finished ranking."""
    out: Out
    """Directory to write; nothing is written elsewhere."""
    candidates: Annotated[Many[str], Metavar("NAME")] = ()
    """Only these candidates; by default all."""
    traces: Annotated[str | None, UNRECORDED, Metavar("FILE|DIR")] = None
    """The responses, where the ranking was given them and they have moved."""
    record: Annotated[bool, UNRECORDED] = True
    """Record responses again whose rows the ranking didn't keep: their cycles have no reuse
    otherwise, and without kept evidence they can't be read."""
    seed: Annotated[int, UNRECORDED] = 0
    """Seed of the intervals."""
    machine: Machine = Machine()
