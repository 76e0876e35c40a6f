"""Settings of `surgeon trigger sft`."""

from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Lt

from surgeon.errors import BadInput
from surgeon.settings.sampling import Machine, Template
from surgeon.settings.schema import POSITIONAL, SHARED, UNRECORDED, Metavar, Out, Switches, settings
from surgeon.settings.training import Batches, Schedule, Tuning


@settings
class SftSettings:
    """Teach a checkpoint its trigger tokens on reconstructed examples (NeuReasoner Eq. 6-7).

    The triggers become tokens of their own, in reserved rows of the embedding where there are any.
    LoRA trains those rows and no others beside its factors.
    """

    checkpoint: Annotated[str, POSITIONAL, Metavar("CHECKPOINT")]
    """The checkpoint to train."""
    examples: Annotated[Path, Metavar("DIR"), UNRECORDED]
    """What `surgeon trigger reconstruct` wrote."""
    out: Out
    """Directory to write; nothing is written elsewhere."""
    monitor: Annotated[Path | None, Metavar("DIR"), UNRECORDED] = None
    """A monitor of the checkpoint; the result carries it."""
    labels: Annotated[Path | None, Metavar("DIR"), UNRECORDED] = None
    """What `surgeon trigger label` wrote, to train the monitor's detectors anew."""
    refit: bool = True
    """Train the monitor's detectors anew on the tuned weights."""
    merge: bool = False
    """Write a checkpoint instead of an adapter."""
    epochs: Annotated[float, Gt(0), Lt(1000)] = 1.0
    """Passes over the examples."""
    mask_wrong: Annotated[
        bool,
        Switches(
            {
                "mask-wrong": (True, "Leave the failing steps out of the loss (the default)."),
                "learn-wrong": (False, "Learn them."),
            }
        ),
    ] = True
    """Leave the failing steps out of the loss as well (R11); Eq. 6 learns them."""
    held_out: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Share of the problems kept from training, to measure the loss on."""
    thinking: bool | None = None
    """Passed to the chat template as `enable_thinking`; by default the template decides."""
    template: Template = None
    """Name of the chat template that examples are rendered with, where the checkpoint has several;
    by default its `default`."""
    seed: Annotated[int, SHARED, UNRECORDED] = 0
    """Seed of everything random."""
    tuning: Tuning = Tuning(weights="full")
    schedule: Schedule = Schedule(warmup=0.05, save_every=50)
    batches: Batches = Batches(batch_size=64)
    machine: Machine = Machine()

    def __post_init__(self) -> None:
        """Raise BadInput where a monitor would be refitted without labels."""
        if self.monitor is not None and self.refit and self.labels is None:
            raise BadInput(
                "found a monitor and no labels, expected both: its detectors are trained anew on "
                "the tuned weights: give the labels directory, or refit=false to keep them."
            )

    @property
    def writes_adapter(self) -> bool:
        """Whether the result is a PEFT adapter."""
        return self.tuning.weights == "lora" and not self.merge
