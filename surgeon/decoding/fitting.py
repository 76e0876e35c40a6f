"""Whether rows at different positions can share this model's passes: tried once per model."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from surgeon.decoding.alone import Alone
from surgeon.decoding.slots import Slots
from surgeon.live.architecture import device_of, fitting_threads, misfit, text_config

TOLERANCE = {torch.float32: 0.02, torch.float64: 0.02}
COARSE_TOLERANCE = 0.3
"""Largest distance of logits that still counts as rounding, as a share of their spread: in float32,
and in narrower types, whose sums come in another order."""
TRIAL_LENGTHS = (5, 2)

_REASONS: "WeakKeyDictionary[nn.Module, str | None]" = WeakKeyDictionary()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model is in eval mode inside the block."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()


def why_alone(model: nn.Module) -> str | None:
    """Why this model's rows can't share passes; None where they can.

    What `misfit` finds no fault with is tried: two short rows that share a pass must get the logits
    that `generate` computes for each. That covers what a config doesn't tell: factors of logits,
    masks that a wrapper makes, a cache that is asked for something else.
    """
    if model not in _REASONS:
        with evaluating(model), fitting_threads(model):
            _REASONS[model] = misfit(model) or _trial(model)
    return _REASONS[model]


def passes_of(model: nn.Module, splits: bool) -> Slots | Alone:
    """How to run this model for a decoder; said on stderr where that is slow."""
    reason = why_alone(model)
    if reason is None:
        return Slots(model)
    _say_slow(text_config(model).model_type, reason)
    return Alone(model, splits)


@cache
def _say_slow(model_type: str, reason: str) -> None:
    print(
        f"{model_type} is decoded with transformers' own cache, one row a pass, which is slow: "
        f"{reason}.",
        file=sys.stderr,
        flush=True,
    )


@torch.inference_mode()
def _trial(model: nn.Module) -> str | None:
    vocabulary = int(text_config(model).vocab_size)
    # Beyond the tokens at the head of a vocabulary, which may stand for images and the like.
    prompts = [[(vocabulary // 3 + 7 * i) % vocabulary for i in range(n)] for n in TRIAL_LENGTHS]
    alone = Alone(model, splits=False)
    try:
        slots = Slots(model)
        slots.fresh(len(prompts), slots.block)
        ours = _logits(slots, prompts)
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        return f"its layers ask the cache for more than keys and values ({error})"
    if not slots.cache.asked:
        return "its masks are its own"
    theirs = _logits(alone, prompts)
    spread_B = theirs.std(-1)
    distance_B = (ours - theirs).std(-1) + (ours - theirs).mean(-1).abs()
    most = TOLERANCE.get(next(model.parameters()).dtype, COARSE_TOLERANCE)
    if bool((distance_B <= most * spread_B).all()):
        return None
    return "its rows come out otherwise where they share a pass"


def _logits(passes: Slots | Alone, prompts: list[list[int]]) -> Tensor:
    """The logits after each prompt."""
    device = device_of(passes.model)
    passes.read([(b, ids[:-1]) for b, ids in enumerate(prompts)])
    token_B = torch.tensor([ids[-1] for ids in prompts], device=device)
    return passes.logits(token_B, np.array([len(ids) - 1 for ids in prompts]))
