"""What is trained, for how long and how fast: groups that `distill` and `trigger-sft` share."""

import math
from typing import Annotated, Literal

from annotated_types import Ge, Lt

from surgeon.errors import BadInput
from surgeon.settings.schema import (
    RECORDED_WHERE_SET,
    SHORTHAND,
    UNRECORDED,
    Amount,
    Count,
    Number,
    Positive,
    Share,
    Switches,
    settings,
)


@settings
class Tuning:
    """Which weights change."""

    weights: Annotated[
        Literal["lora", "full"],
        SHORTHAND,
        Switches({"lora": ("lora", "Train an adapter."), "full": ("full", "Train all weights.")}),
    ] = "lora"
    """An adapter (lora), or all weights (full)."""
    rank: Count = 16
    """LoRA: inner size of the two factors."""
    alpha: Positive = 32.0
    """LoRA: the change is alpha / rank times the product of the factors."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """LoRA: share of the inputs that is dropped in training."""
    targets: str = "all-linear"
    """LoRA: module names, separated by commas, or `all-linear` (all but the unembedding)."""
    mastered: Annotated[bool, RECORDED_WHERE_SET] = False
    """All weights: keep them in bfloat16, with a float32 copy in the optimizer, instead of
    computing in float32 or casting in every pass. What is written has bfloat16's precision, also
    of a float32 base."""
    gradient_checkpointing: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""

    def __post_init__(self) -> None:
        """Raise BadInput for master copies of an adapter, which is in float32 anyhow."""
        if self.mastered and self.weights == "lora":
            raise BadInput(
                "found mastered and lora, expected full: an adapter is trained in float32 on a "
                "base of any dtype."
            )


@settings
class Schedule:
    """How fast, and how often the state is saved."""

    lr: Positive | None = None
    """Peak learning rate of AdamW; by default it depends on what is trained."""
    warmup: Share = 0.03
    """Share of the steps in which the rate rises linearly."""
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    """How the rate falls to 0 afterwards."""
    weight_decay: Amount = 0.0
    """AdamW's."""
    clip: Amount = 1.0
    """Largest norm of the gradient; 0: no limit."""
    save_every: Annotated[Number, UNRECORDED] = 25
    """Steps between saved states; 0: none."""
    seed: int = 0
    """Seed of everything random."""

    @property
    def peak(self) -> float:
        """The highest learning rate: 1e-4 where none was given."""
        return 1e-4 if self.lr is None else self.lr

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step 0, 1, ... of so many."""
        rising = max(1, round(self.warmup * steps))
        if step < rising:
            return self.peak * (step + 1) / rising
        done = (step - rising) / max(1, steps - rising)
        falls = {
            "constant": 1.0,
            "linear": 1.0 - done,
            "cosine": 0.5 * (1 + math.cos(math.pi * done)),
        }
        return self.peak * falls[self.decay]


@settings
class Batches:
    """What a step learns from, and the processes that share it."""

    batch_size: Count = 16
    """Questions or examples per step, over all processes."""
    micro_tokens: Count | Literal["auto"] = "auto"
    """Tokens of one forward and backward pass, padding included; auto: 16384, or as many as half of
    the free memory holds."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Several processes: each holds the model (ddp), or a part of every layer (fsdp)."""
    tracker: Annotated[Literal["tensorboard", "trackio", "wandb"] | None, UNRECORDED] = None
    """Where metrics go beside metrics.jsonl."""
