"""A training on given answers, checked against files and headers before the model is loaded."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from surgeon import lineage
from surgeon.checkpoint import Checkpoint, placement
from surgeon.families import open_checkpoint
from surgeon.settings import record
from surgeon.settings.sft import SftTracesSettings
from surgeon.settings.training import Schedule
from surgeon.sft.lessons import (
    Lesson,
    Mixture,
    Taught,
    digest_of_lessons,
    encoder,
    read_lessons,
)
from surgeon.traces import Prompt, read_prompts
from surgeon.training import processes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

LEARNING_RATES = {"full": 1e-5, "lora": 1e-4}
"""That of full weights is the paper's (NEX sec. 4.5)."""


class TracesPlan(NamedTuple):
    """A training whose inputs have been checked; nothing has been computed yet."""

    settings: SftTracesSettings
    schedule: Schedule
    """With a learning rate."""
    checkpoint: Checkpoint
    taught: Taught
    learned: list[Lesson]
    tested: list[Lesson]
    """Kept from training, to measure the loss on."""
    mixture: Mixture | None
    device: str
    dtype: "torch.dtype | None"
    warnings: tuple[str, ...]
    run: lineage.Run

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.learned) // self.settings.batches.batch_size)

    @property
    def steps(self) -> int:
        """Optimizer steps; the last one of an epoch may have fewer examples."""
        return max(1, round(self.settings.epochs * self.steps_per_epoch))


def prepare(settings: SftTracesSettings) -> TracesPlan:
    """Check the settings against files and headers; raises `BadInput`."""
    processes.require_launch(settings.batches.tracker)
    device, dtype = placement(settings.machine.device, settings.machine.dtype)
    lr = settings.schedule.lr or LEARNING_RATES[settings.tuning.weights]
    mixture = None if settings.mix is None else Mixture.parse(settings.mix)
    files = settings.traces if mixture is None else mixture.files
    prompts: dict[str, Prompt] = {}
    if settings.prompts is not None:
        read = read_prompts(settings.prompts, columns=settings.columns)
        prompts = {prompt.id: prompt for prompt in read}
    checkpoint = open_checkpoint(settings.checkpoint)
    tokenizer = checkpoint.tokenizer()
    taught = read_lessons(
        files, encoder(tokenizer, settings.thinking, settings.template), checkpoint.context,
        prompts=prompts, columns=settings.columns, mixture=mixture, seed=settings.seed,
    )  # fmt: skip
    learned, tested = _held_out(taught.lessons, settings)
    inputs = {"checkpoint": checkpoint.digest, "examples": digest_of_lessons(taught.lessons)}
    arguments = record(settings) | {"checkpoint": checkpoint.spec, "lr": lr}
    if mixture is not None:
        arguments["mix"] = mixture.share
    return TracesPlan(
        settings, replace(settings.schedule, lr=lr), checkpoint, taught, learned, tested, mixture,
        device, dtype, tuple(_warnings(checkpoint, tokenizer, taught)),
        lineage.Run("sft", arguments, inputs, settings.seed),
    )  # fmt: skip


def _held_out(
    lessons: Sequence[Lesson], settings: SftTracesSettings
) -> tuple[list[Lesson], list[Lesson]]:
    """Examples to learn and to be tested on, those of a prompt together."""
    prompts = sorted({lesson.prompt_id for lesson in lessons})
    order = np.random.default_rng(settings.seed).permutation(len(prompts))
    kept = {prompts[i] for i in order[: min(round(settings.held_out * len(prompts)),
                                            len(prompts) - 1)]}  # fmt: skip
    return (
        [lesson for lesson in lessons if lesson.prompt_id not in kept],
        [lesson for lesson in lessons if lesson.prompt_id in kept],
    )


def _warnings(
    checkpoint: Checkpoint, tokenizer: "PreTrainedTokenizerBase", taught: Taught
) -> Iterator[str]:
    if taught.too_long:
        yield (
            f"{taught.too_long} examples are longer than the context of {checkpoint.context} "
            "tokens: left out."
        )
    if taught.unpaired:
        yield f"{taught.unpaired} prompts are answered in one file of the mixture only: left out."
    ends: list[Any] = [checkpoint.generation_config.get("eos_token_id"), tokenizer.eos_token_id]
    stops = {i for end in ends for i in (end if isinstance(end, list) else [end])}
    others = [n for lesson in taught.lessons if (n := int(lesson.ids[-1])) not in stops]
    cut = sum(file.cut for file in taught.files)
    if len(others) > cut:
        end = tokenizer.convert_ids_to_tokens(max(set(others), key=others.count))
        yield (
            f"{len(others) - cut} examples end with a token that doesn't end an answer of this "
            f"checkpoint (most often {end!r}): add it to eos_token_id of generation_config.json, "
            "or answers won't end."
        )
