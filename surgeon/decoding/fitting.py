"""Whether rows at different positions can share this model's passes, and how many rows a pass
needs to have: tried with the model itself."""

import sys
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import cache
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from surgeon.decoding.alone import Alone
from surgeon.decoding.slots import Slots
from surgeon.live.architecture import device_of, misfit, text_config
from surgeon.live.processor import fitting_threads, say_slow_type

TOLERANCE = {torch.float32: 0.02, torch.float64: 0.02}
COARSE_TOLERANCE = 0.3
"""Largest distance of logits that still counts as rounding, as a share of their spread: in float32,
and in narrower types, whose sums come in another order."""
TRIAL_LENGTHS = (5, 2)
ROWS = 16
"""On the CPU matrix products of fewer rows, and the last elements of tensors of another size, may
be computed in another way, so that an answer's bits would depend on how many others are decoded
beside it. Batches of a multiple of this many rows are safe; which smaller ones are is tried."""
TRIED_ROWS = {1: (1, 2, 3, 13, 24), 2: (2, 14, 24), 4: (4, 12, 24), 8: (8, 24)}
"""Rows of the passes in which each row must get the bits it gets among 32, for batches of any
multiple of so many rows to be used."""

_BLOCKS: dict[tuple[Hashable, ...], int] = {}
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


def row_block(passes: Slots | Alone) -> int:
    """A batch may have any multiple of this many rows: the least for which, on this machine and
    with its threads, a row's bits don't depend on the number of rows.

    Tried once for each shape of model. In bfloat16 on most machines 1.
    """
    if isinstance(passes, Alone) or not passes.on_cpu:
        return ROWS if device_of(passes.model).type == "cpu" else 1
    with evaluating(passes.model), fitting_threads(passes.model):
        key = _shape(passes)
        if key not in _BLOCKS:
            _BLOCKS[key] = _tried_rows(passes)
        return _BLOCKS[key]


def _shape(passes: Slots) -> tuple[Hashable, ...]:
    """What the way of computing may follow from."""
    model = passes.model
    weights = {(tuple(p.shape), p.dtype) for p in model.parameters()}
    return (
        type(model),
        frozenset(weights),
        passes.one_token,
        bool(passes.linears),
        torch.get_num_threads(),
    )


@torch.inference_mode()
def _tried_rows(passes: Slots) -> int:
    trial, vocabulary = Slots(passes.model), int(text_config(passes.model).vocab_size)
    passes.pack()
    trial.packed = passes.packed
    rng = np.random.default_rng(0)
    # The first row is the longest, so that attention sees as many keys in every pass.
    length_B = np.append(trial.block, rng.integers(1, trial.block, 2 * ROWS - 1))
    id_BT = rng.integers(0, vocabulary, (len(length_B), trial.block + 1))
    token_B = torch.from_numpy(id_BT[:, -1])
    trial.fresh(len(length_B), 2 * trial.block)
    trial.begin(
        [(b, ids[:n].tolist()) for b, (ids, n) in enumerate(zip(id_BT, length_B, strict=True))]
    )
    trial.read_on()
    expected_BV = trial.logits(token_B, length_B)
    for block, sizes in TRIED_ROWS.items():
        if all(
            torch.equal(trial.logits(token_B[:n], length_B[:n]), expected_BV[:n]) for n in sizes
        ):
            return block
    return ROWS


def passes_of(model: nn.Module, splits: bool) -> Slots | Alone:
    """How to run this model for a decoder; said on stderr where that is slow."""
    say_slow_type(model)
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
    if bool(theirs.isnan().any()):
        return None  # weights that are no numbers: nothing can be compared, and sampling says so
    spread_B = theirs.std(-1)
    distance_B = (ours - theirs).std(-1) + (ours - theirs).mean(-1).abs()
    most = TOLERANCE.get(next(model.parameters()).dtype, COARSE_TOLERANCE)
    if bool((distance_B <= most * spread_B).all()):
        return None
    return "its rows come out otherwise where they share a pass"


def _logits(passes: Slots | Alone, prompts: list[list[int]]) -> Tensor:
    """The logits after each prompt."""
    device = device_of(passes.model)
    passes.begin([(b, ids[:-1]) for b, ids in enumerate(prompts)])
    passes.read_on()
    token_B = torch.tensor([ids[-1] for ids in prompts], device=device)
    return passes.logits(token_B, np.array([len(ids) - 1 for ids in prompts]))
