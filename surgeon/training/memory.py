"""How many tokens one forward and backward pass may have: as many as the free memory holds."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from surgeon import lineage, progress
from surgeon.decoding.cache import available_bytes
from surgeon.live.architecture import text_decoder
from surgeon.training import processes
from surgeon.training.mastered import MASTER_BYTES
from surgeon.training.student import Student
from surgeon.training.tuning import trainable

MOST, LEAST = 16384, 256
"""Ends of what `auto` takes; a longer sequence goes alone all the same."""
ROOM = 0.5
"""Share of the free memory that is planned with: gradients of activations, logits of a chunk, and
what an allocator doesn't give back need the rest."""
TRIED = 64
"""Tokens of the passes by which it is measured: so many, and twice as many."""
FILE = "micro-tokens.json"


def micro_tokens(student: Student, asked: int | Literal["auto"], directory: Path) -> int:
    """Tokens of a micro-batch, padding included: those that were asked for, or what fits.

    What a run began with is kept in `directory`, for sums in another order round otherwise: a run
    that goes on with more free memory ends in the same numbers. Processes take the smallest of what
    fits them.
    """
    if asked != "auto":
        return asked
    accelerator, file = student.accelerator, directory / FILE
    known = processes.first(
        accelerator, lambda: json.loads(file.read_text()) if file.is_file() else None
    )
    if known is not None:
        return int(known)
    fits = torch.tensor(_fitting(student), device=accelerator.device)
    if accelerator.num_processes > 1:
        fits = accelerator.gather(fits[None]).min()  # pyright: ignore[reportAttributeAccessIssue]
    found = int(fits)
    processes.first(accelerator, lambda: _keep(file, found))
    return found


def tokens_without_gradients(asked: int | Literal["auto"]) -> int:
    """Tokens of a pass that keeps nothing for a backward pass: a layer's inside at a time."""
    return MOST if asked == "auto" else asked


def _keep(file: Path, found: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    lineage.write_text(file, json.dumps(found))


def _fitting(student: Student) -> int:
    """Tokens whose activations fit in the free memory of this process."""
    device = student.accelerator.device
    free = available_bytes(device)
    if device.type == "cpu":
        free //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    parameters = trainable(student.model).values()
    held = sum(_local(p).numel() * step_bytes(p) for p in parameters)
    each, once = activation_bytes(student)
    found = max(LEAST, min(MOST, int(ROOM * (free - held - once) // each)))
    if found < MOST:
        less = "" if _checkpointing(student.model) else " Gradient checkpointing keeps less."
        progress.say(
            f"Micro-batches have at most {found:,} tokens: {free / 1e9:.1f} GB are free, a token "
            f"keeps {each / 1e6:.2f} MB for the backward pass, gradients and optimizer take "
            f"{held / 1e9:.1f} GB.{less}"
        )
    return found


def step_bytes(parameter: Tensor) -> int:
    """Bytes of a trained number's gradient, moments and, of bfloat16 weights, master copy."""
    return parameter.element_size() + (MASTER_BYTES if parameter.dtype == torch.bfloat16 else 8)


def activation_bytes(student: Student) -> tuple[int, int]:
    """(Bytes that a token keeps for the backward pass, bytes that are kept once)."""
    model = student.model
    with _without_checkpointing(model):
        few, many = (_kept_bytes(student, n) for n in (TRIED, 2 * TRIED))
    each = max(1, (many - few) // TRIED)
    once = max(0, few - TRIED * each)
    if _checkpointing(model):
        # Each layer's input, and the inside of the one that is made again.
        layers = len(text_decoder(model).layers)  # pyright: ignore[reportArgumentType]
        width = text_decoder(model).get_input_embeddings().weight.shape[1]  # pyright: ignore
        size = 2 if student.bf16 else next(model.parameters()).element_size()
        each = layers * width * size + each // layers
    return each, once


def _kept_bytes(student: Student, tokens: int) -> int:
    """Bytes that autograd keeps of a pass over so many tokens, weights aside."""
    weights = {_storage(p) for p in student.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        at = _storage(tensor)
        if at not in weights:
            kept[at] = tensor.untyped_storage().nbytes()
        return tensor

    def run(model: nn.Module) -> Tensor:
        vocabulary = len(text_decoder(model).get_input_embeddings().weight)  # pyright: ignore
        ids_BT = torch.arange(tokens, device=student.accelerator.device)[None] % vocabulary
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            # The states, not the logits, which exist a chunk at a time.
            return text_decoder(model)(input_ids=ids_BT, use_cache=False).last_hidden_state

    with torch.enable_grad():
        if student.sharded:
            # Shards are put back, and wait for gradients, until a pass backward has ended.
            student(run).float().sum().backward()
            student.model.zero_grad(set_to_none=True)
        else:
            student.model.train()
            with student.autocast():
                run(student.model)
    return sum(kept.values())


def _storage(tensor: Tensor) -> int:
    return _local(tensor).untyped_storage().data_ptr()


def _local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # pyright: ignore


def _checkpointing(model: nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


@contextmanager
def _without_checkpointing(model: nn.Module) -> Iterator[None]:
    """Inside the block all layers keep what they need: checkpointing hides it from autograd."""
    on: list[Any] = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    for module in on:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for module in on:
            module.gradient_checkpointing = True
