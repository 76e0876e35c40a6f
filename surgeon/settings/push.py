"""What `surgeon push` can be asked to do."""

from typing import Annotated, Literal

from surgeon.settings.schema import POSITIONAL, UNRECORDED, Metavar, settings


@settings
class PushSettings:
    """Put a result on the Hugging Face hub: its files, a card, and what it was made of.

    The repository is private unless --public is given. Nothing else surgeon does writes to the
    network.
    """

    what: Annotated[str, POSITIONAL, UNRECORDED, Metavar("OUT")]
    """A directory that a command wrote, or what names a checkpoint:
    DIR/family.json#CANDIDATE, BASE+ADAPTER."""
    repository: Annotated[str, POSITIONAL, UNRECORDED, Metavar("OWNER/NAME")]
    """Where to: it is made where it doesn't exist."""
    public: Annotated[bool, UNRECORDED] = False
    """Make a new repository public; one that exists stays as it is."""
    kind: Annotated[Literal["model", "dataset"] | None, UNRECORDED] = None
    """What the repository holds; by default model for checkpoints and adapters, dataset for
    everything else."""
    message: Annotated[str, UNRECORDED] = ""
    """Of the commit; by default what made it."""
    revision: Annotated[str | None, UNRECORDED] = None
    """The branch to write to, which must exist; by default main."""
    dry_run: Annotated[bool, UNRECORDED] = False
    """Print the files and the card; ask the network for nothing."""
