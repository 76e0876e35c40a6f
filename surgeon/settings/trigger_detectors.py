"""What `surgeon trigger detectors` can be asked to do."""

from typing import Annotated, Literal

from annotated_types import Ge

from surgeon.settings.neureasoner import DetectorTraining, WatchSettings, even_probes
from surgeon.settings.sampling import Machine
from surgeon.settings.schema import (
    POSITIONAL,
    SHARED,
    UNRECORDED,
    Count,
    Directory,
    Number,
    Out,
    settings,
)

Negatives = Literal["all", "pairs"]


@settings
class DetectorsSettings:
    """Train a detector per level on the channels' activations over the labelled steps.

    Writes monitor.safetensors and detectors.json.
    """

    checkpoint: Annotated[str, POSITIONAL]
    """Whose activations are watched."""
    labels: Directory
    """What `surgeon trigger label` wrote."""
    channels: Directory
    """What `surgeon trigger identify` wrote."""
    out: Out
    """Directory to write."""
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
    negatives: Negatives = "all"
    """What a detector learns to leave alone: every step that was found sound (all), or the
    counterparts of failing spans only (pairs)."""
    cooldown: Number = WatchSettings.cooldown
    """Steps of rest after a firing."""
    cap: Number = WatchSettings.cap
    """Most firings per response."""
    batch_tokens: Annotated[Count, UNRECORDED] = 4096
    """Tokens of a pass that reads activations."""
    seed: Annotated[int, SHARED, UNRECORDED] = 0
    """Seed of the split, the first weights and the batches."""
    detector: DetectorTraining = DetectorTraining()
    machine: Machine = Machine()

    def watch(self) -> WatchSettings:
        """What the monitor watches for."""
        return WatchSettings(
            k=self.k, k_intra=self.k_intra, k_inter=self.k_inter, probes=even_probes(self.probes),
            instance_steps=self.instance_steps, cooldown=self.cooldown, cap=self.cap,
        )  # fmt: skip
