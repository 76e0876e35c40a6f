"""What `surgeon trigger fluctuation` can be asked to do."""

from typing import Annotated

from annotated_types import Ge

from surgeon.settings.neureasoner import WatchSettings, even_probes
from surgeon.settings.sampling import Machine
from surgeon.settings.schema import (
    POSITIONAL,
    SHARED,
    UNRECORDED,
    Count,
    Directory,
    Metavar,
    Out,
    settings,
)


@settings
class FluctuationSettings:
    """Profiles of the channels in time and frequency, failing spans against their counterparts.

    Writes fluctuation.json and fluctuation.html.
    """

    checkpoint: Annotated[str, POSITIONAL, Metavar("CHECKPOINT")]
    """Whose activations are read."""
    labels: Directory
    """What `surgeon trigger label` wrote."""
    channels: Directory
    """What `surgeon trigger identify` wrote."""
    out: Out
    """Directory to write."""
    tokens: Count = 64
    """Tokens from a span's first one on that the profile in time shows."""
    k: Count = WatchSettings.k
    """Steps in the window of intra and inter, the latest included."""
    k_intra: Count | None = None
    """Another number for intra."""
    k_inter: Count | None = None
    """Another number for inter."""
    instance_steps: Count = WatchSettings.instance_steps
    """The first steps, over which the features of instance reach."""
    probes: Annotated[int, Ge(2)] = len(WatchSettings.probes)
    """Frequencies."""
    batch_tokens: Annotated[Count, UNRECORDED] = 4096
    """Tokens of a pass that reads activations."""
    seed: Annotated[int, SHARED, UNRECORDED] = 0
    """Seed of the intervals."""
    machine: Machine = Machine()

    def watch(self) -> WatchSettings:
        """The windows of the features."""
        return WatchSettings(
            k=self.k, k_intra=self.k_intra, k_inter=self.k_inter, probes=even_probes(self.probes),
            instance_steps=self.instance_steps,
        )  # fmt: skip
