"""Settings of `surgeon read`."""

from typing import Annotated

from surgeon.settings.asking import EndpointSettings
from surgeon.settings.sampling import Machine
from surgeon.settings.schema import (
    POSITIONAL,
    UNRECORDED,
    Amount,
    Count,
    File,
    Many,
    Metavar,
    Out,
    settings,
)


@settings
class ReadSettings:
    """Read every response of a ranking: its slope, its phases and the verdict on each cycle.

    Writes report.html, which opens offline and shows any response, cycles.jsonl, what each phase
    and the entropy have in common (NEX Tab. 5), and blocks to be labelled by people (sec. A.8).
    With --markers, --judge or --labels it says how far the phases agree with them (Tab. 1); a
    finished reading is labelled anew without being read again.
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
    markers: Annotated[bool, UNRECORDED] = False
    """Label blocks by the words of sec. A.8 (wait, but, maybe, ...)."""
    judge: Annotated[str | None, UNRECORDED, Metavar("builtin|URL#MODEL|MODULE:FUNCTION")] = None
    """Let a judge label blocks: a model at an OpenAI-compatible endpoint, a function, or what the
    built-in task knows of its own steps."""
    judge_temperature: Annotated[Amount | None, UNRECORDED] = None
    """Sampling temperature of an endpoint; by default its own."""
    labels: Annotated[Many[File], UNRECORDED] = ()
    """Labels made by people: blocks.csv filled in, or JSON lines of id, label and annotator."""
    blocks: Annotated[Count, UNRECORDED] = 200
    """Blocks that are drawn to be labelled, all of a response's together, from every candidate in
    turn."""
    seed: Annotated[int, UNRECORDED] = 0
    """Seed of the draw, and of the intervals."""
    dry_run: Annotated[bool, UNRECORDED] = False
    """Say what it will take and write nothing."""
    endpoint: EndpointSettings = EndpointSettings()
    machine: Machine = Machine()
