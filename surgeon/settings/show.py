"""What `surgeon show` can be asked to do."""

from typing import Annotated

from surgeon.settings.schema import POSITIONAL, UNRECORDED, Metavar, settings


@settings
class ShowSettings:
    """Say what a path or a spec is: its shape, what can be done with it, and what it was made of.

    Checkpoints, families, rankings, evaluations, transplants, adapters, monitors, traces, prompts
    and whatever else a command wrote. Nothing is written.
    """

    what: Annotated[str, POSITIONAL, UNRECORDED, Metavar("PATH|SPEC")]
    """A directory or a file, or what names a checkpoint elsewhere: a hub id, BASE+ADAPTER,
    builtin:NAME, DIR/family.json#CANDIDATE."""
    verify: Annotated[bool, UNRECORDED] = False
    """Compute the digest of everything it was made of, and compare it with the recorded one."""
