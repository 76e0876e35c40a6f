"""What a monitor watches for and how it steps in, and how its detectors are trained."""

from dataclasses import field
from math import pi
from typing import Annotated, Literal, get_args

from annotated_types import Ge, Gt, Lt
from pydantic import Strict

from surgeon.errors import BadInput
from surgeon.settings.schema import Amount, Count, Number, Positive, settings

Level = Literal["intra", "inter", "instance"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""The failure levels: a wrong step, stagnation between steps, over-thinking an easy question."""
ENOUGH = "enough"
"""What early stopping watches for beside them: the thinking already holds its answer."""
WATCHED = (*LEVELS, ENOUGH)
ENDING = ("instance", ENOUGH)
"""A firing at these ends the thinking."""
StepLevel = Literal["intra", "inter"]
STEPWISE: tuple[StepLevel, ...] = get_args(StepLevel)
"""The levels at which single steps fail. They are trained: `instance` needs no training, since its
finish text is in the checkpoint's own words (sec. 3.3)."""
Tags = tuple[str, str]
"""(What opens a thinking block, what closes it)."""
TAGS: tuple[Tags, ...] = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
"""Tags in use; a chat template names the ones of its model."""
THINKING = TAGS[0]
AROUND: dict[Tags, tuple[str, str]] = {TAGS[-1]: ("<|end|><|start|>assistant", "")}
"""What stands around the closing tag of a model, where it isn't line breaks."""
Action = Literal["trigger", "resample", "choose"]
"""What a firing at `intra` and `inter` does."""
Text = Annotated[str, Strict()]
"""Text; a number isn't taken for one."""


def even_probes(n: int) -> tuple[float, ...]:
    """`n` frequencies in radians per token, evenly over (0, pi]; raises BadInput below two."""
    if n < 2:
        raise BadInput(f"found {n} probe frequencies, expected at least 2.")
    return tuple(pi * ((i + 1) / n) for i in range(n))


@settings
class WatchSettings:
    """What a monitor watches for and how it steps in."""

    k: Count = 4
    """Steps that the features of `intra` and `inter` reach over, the latest included."""
    k_intra: Count | None = None
    """Another number for `intra`."""
    k_inter: Count | None = None
    """Another number for `inter`."""
    k_enough: Count = 1
    """Steps that the features of `enough` reach over."""
    instance_steps: Count = 4
    """The first steps (K), over which the features of `instance` reach."""
    probes: tuple[float, ...] = even_probes(16)
    """Frequencies in radians per token, two or more, ascending, above 0 and at most pi."""
    cooldown: Number = 1
    """Steps after a firing at whose ends nothing fires."""
    cap: Number = 8
    """Most firings in a response."""
    action: Action = "trigger"
    """What a firing at `intra` or `inter` does: its token is forced (trigger), the step is drawn
    anew until nothing fires (resample), or so many more are drawn and the one that the detector
    likes best stays (choose). The last two need no training."""
    draws: Count = 4
    """Most new draws of a step (resample); further draws (choose)."""
    triggers: dict[str, Text] = field(
        default_factory=lambda: {"intra": "<INTRA>", "inter": "<INTER>"}
    )
    """Level (`intra` and `inter`) -> the token that is forced when it fires."""
    finish: Text = "Okay, I have finished thinking."
    """The text that is forced when `instance` or `enough` fires; the end of the thinking block
    follows. An empty one closes it right after the step."""
    thinking: tuple[Text, Text] = THINKING
    """The tags that open and close the thinking block."""
    closes: bool | None = None
    """Whether the finish text is followed by the closing tag; None: where that is a single token,
    since a tokenizer without one may be of a model that doesn't think between tags."""
    around: tuple[Text, Text] = ("\n", "\n\n")
    """What the chat template puts before and after the closing tag."""

    def __post_init__(self) -> None:
        """Raise BadInput for probes out of order and for triggers of other levels."""
        probes = self.probes
        ascending = len(probes) > 1 and list(probes) == sorted(set(probes))
        if not ascending or min(probes) <= 0 or max(probes) > pi:
            raise BadInput(
                f"found probes = {probes}, expected two or more ascending frequencies above 0, at "
                "most pi."
            )
        if set(self.triggers) != {"intra", "inter"}:
            raise BadInput(
                f"found triggers = {self.triggers}, expected one for intra and inter each."
            )

    def redraws(self, level: str) -> bool:
        """Whether a firing at this level draws the step anew."""
        return level in STEPWISE and self.action != "trigger"

    def steps(self, level: str) -> int:
        """Steps that the features of a level reach over."""
        if level == "instance":
            return self.instance_steps
        if level == ENOUGH:
            return self.k_enough
        other = self.k_intra if level == "intra" else self.k_inter
        return self.k if other is None else other


@settings
class DetectorTraining:
    """How a detector is trained. The paper names the architecture and the loss, and no numbers."""

    hidden: Count = 64
    """Width of the two hidden layers."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Share of the hidden units that are dropped in training."""
    updates: Count = 600
    """Steps of the optimizer."""
    detector_batch: Annotated[int, Ge(2)] = 256
    """Samples of an update, half of them failing."""
    lr: Positive = 1e-3
    """Learning rate of AdamW."""
    weight_decay: Amount = 0.01
    """Weight decay of AdamW."""
    held_out: Annotated[float, Gt(0), Lt(1)] = 0.2
    """Share of the problems kept for the test."""
    folds: Annotated[int, Ge(2)] = 4
    """Parts of the training problems, each predicted by a detector that didn't see it: from those
    predictions the threshold is chosen."""
    positions: Literal["tokens", "ends"] = "tokens"
    """Train on every token, or only where the detector is read."""
    criterion: Literal["balanced", "accuracy", "f1"] = "balanced"
    """What the threshold makes largest where the detector is read: the mean of both recalls, the
    accuracy, or F1."""
    seed: int = 0
    """Seed of the split, the first weights and the batches."""
