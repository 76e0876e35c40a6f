"""Settings of `surgeon sft`."""

from typing import Annotated

from annotated_types import Ge, Gt, Lt

from surgeon.errors import BadInput
from surgeon.settings.sampling import Columns, Machine, Template
from surgeon.settings.schema import (
    POSITIONAL,
    SHARED,
    UNRECORDED,
    Many,
    Metavar,
    Out,
    settings,
)
from surgeon.settings.training import Batches, Schedule, Tuning


@settings
class SftTracesSettings:
    """Train a checkpoint on given answers: traces, prompts with responses, or conversations.

    The defaults are those of NEX sec. 4.5: full weights, 8 examples a step, a rate of 1e-5, one
    epoch, a cosine with 10% warm-up. Only answers are learned, and no example sees another. Answers
    are given, so there is no engine; the processes that share a training are those of `torchrun`
    or `accelerate launch`, not workers.
    """

    checkpoint: Annotated[str, POSITIONAL, Metavar("CHECKPOINT")]
    """The checkpoint to train."""
    traces: Annotated[Many[str], Metavar("FILE"), UNRECORDED] = ()
    """What is learned: files of traces, of prompts with a response, or of messages that end with
    the assistant's; JSON lines, a JSON array, CSV, Parquet, or a data set on the hub."""
    mix: Annotated[str | None, Metavar("A:B=SHARE"), UNRECORDED] = None
    """Instead: of the prompts that files A and B both answer, this share is learned from B and the
    rest from A. Prompts are drawn by their id and the seed, so a larger share holds a smaller."""
    out: Out
    """Directory to write; nothing is written elsewhere."""
    prompts: Annotated[str | None, Metavar("FILE"), UNRECORDED] = None
    """The prompts of traces, to be put through this checkpoint's chat template; without them a
    trace keeps the prompt's tokens that it was written with."""
    columns: Columns = None
    """Columns with other names than the usual ones: prompt=problem,messages=dialogue."""
    epochs: Annotated[float, Gt(0), Lt(1000)] = 1.0
    """Passes over the examples."""
    pack: bool = True
    """Put short examples into a row together. They don't attend to each other, so the loss is the
    same; a model that can't keep them apart is trained without."""
    merge: bool = False
    """Write a checkpoint instead of an adapter."""
    held_out: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the prompts kept from training, to measure the loss on."""
    thinking: bool | None = None
    """Passed to the chat template as `enable_thinking`; by default the template decides."""
    template: Template = None
    """Name of the chat template that examples are rendered with, where the checkpoint has several;
    by default its `default`."""
    seed: Annotated[int, SHARED, UNRECORDED] = 0
    """Seed of everything random."""
    tuning: Tuning = Tuning(weights="full")
    schedule: Schedule = Schedule(warmup=0.1, save_every=50)
    batches: Batches = Batches(batch_size=8)
    machine: Machine = Machine()

    def __post_init__(self) -> None:
        """Raise BadInput unless there is one source of examples."""
        if bool(self.traces) == (self.mix is not None):
            found = "traces and mix" if self.traces else "neither traces nor mix"
            raise BadInput(f"found {found}, expected --traces FILE... or --mix A:B=SHARE.")

    @property
    def writes_adapter(self) -> bool:
        """Whether the result is a PEFT adapter."""
        return self.tuning.weights == "lora" and not self.merge
