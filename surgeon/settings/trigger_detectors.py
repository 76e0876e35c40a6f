"""What `surgeon trigger detectors` can be asked to do."""

from typing import Annotated, Literal

from annotated_types import Ge

from surgeon.errors import BadInput
from surgeon.settings.neureasoner import DetectorTraining, Text, WatchSettings, even_probes
from surgeon.settings.sampling import Machine
from surgeon.settings.schema import (
    POSITIONAL,
    RECORDED_WHERE_SET,
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
    finish: Text = WatchSettings.finish
    """The text that is forced when instance fires; an empty one closes the thinking right after the
    step."""
    trials: Annotated[Number, RECORDED_WHERE_SET] = 0
    """Most firings that are forced at failing and at sound step ends each, by level, to tell what
    one is worth; 0: none. A level that isn't worth it is off by default."""
    action: Annotated[Literal["trigger", "resample"] | None, RECORDED_WHERE_SET] = None
    """What a firing at intra or inter does: force its token, which the checkpoint then has to know
    (trigger, the default), or draw the step anew (resample)."""
    max_tokens: Annotated[Count | None, RECORDED_WHERE_SET] = None
    """Longest answer on trial; by default that of the labelled traces."""
    check: Annotated[str | None, RECORDED_WHERE_SET] = None
    """How answers on trial are judged: exact (the default), choice, math, or module:function."""
    answer: Annotated[str | None, RECORDED_WHERE_SET] = None
    """What is read out of them: auto (the default), boxed, choice, number, last-line, a regex with
    one group, or module:function."""
    batch_tokens: Annotated[Count, UNRECORDED] = 4096
    """Tokens of a pass that reads activations."""
    seed: Annotated[int, SHARED, UNRECORDED] = 0
    """Seed of the split, the first weights and the batches."""
    detector: DetectorTraining = DetectorTraining()
    machine: Machine = Machine()

    def __post_init__(self) -> None:
        """Raise BadInput for a setting of trials where there are none."""
        given = {"max_tokens": self.max_tokens, "check": self.check, "answer": self.answer}
        unused = [name for name, value in given.items() if value is not None]
        if unused and not self.trials:
            raise BadInput(
                f"found {unused[0]} and no trials, expected --trials N: answers are drawn and "
                "judged on trial only."
            )

    def watch(self) -> WatchSettings:
        """What the monitor watches for."""
        return WatchSettings(
            k=self.k, k_intra=self.k_intra, k_inter=self.k_inter, probes=even_probes(self.probes),
            instance_steps=self.instance_steps, cooldown=self.cooldown, cap=self.cap,
            finish=self.finish, action=self.action or "trigger",
        )  # fmt: skip
