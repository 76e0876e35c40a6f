"""How a model is best run on this machine's CPU: on how many threads, in which type of numbers."""

# Shape letters: T tokens.

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from weakref import WeakKeyDictionary

import torch
from torch import nn

from surgeon.live.architecture import base_model, device_of, text_config
from surgeon.threads import on_threads

SMALL_MODEL = 20_000_000
"""Parameters below which a model runs on one thread."""
DECIDED_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables of the environment with which a user decides on the number of threads."""
TRIAL_TOKENS = 16
GAIN = 0.9
"""Several threads are used where a pass takes at most this share of its time on one."""
HOPELESS = 2
"""More than so many times that of one thread isn't measured twice."""
TRUSTED_S = 600
"""A machine may get busy: what was measured is measured again after this many seconds."""

_PARAMETERS: "WeakKeyDictionary[nn.Module, int]" = WeakKeyDictionary()
_THREADS: "WeakKeyDictionary[nn.Module, tuple[int, int, float]]" = WeakKeyDictionary()


def parameters_of(model: nn.Module) -> int:
    """How many parameters a model has, tied ones once."""
    if model not in _PARAMETERS:
        _PARAMETERS[model] = sum(parameter.numel() for parameter in model.parameters())
    return _PARAMETERS[model]


@contextmanager
def fitting_threads(model: nn.Module) -> Iterator[None]:
    """As many threads as suit a model on the CPU, inside the block.

    One for a small model: its operations are too small to share, and its bits don't depend on the
    number of threads then. Else one or as many as torch uses, whichever ran a short pass faster:
    where another process has a core, threads that wait for one another made sampling 14 times
    slower. Where OMP_NUM_THREADS is set, the user has decided.
    """
    before = torch.get_num_threads()
    if before == 1 or device_of(model).type != "cpu":
        yield
        return
    with on_threads(1 if parameters_of(model) < SMALL_MODEL else _faster(model, before)):
        yield


def _faster(model: nn.Module, most: int) -> int:
    """1 or `most` threads, as measured lately."""
    if any(os.environ.get(name) for name in DECIDED_BY):
        return most
    of, chosen, until = _THREADS.get(model, (0, 0, 0.0))
    if of != most or time.monotonic() > until:
        chosen = _measured(model, most)
        _THREADS[model] = most, chosen, time.monotonic() + TRUSTED_S
    return chosen


@torch.inference_mode()
def _measured(model: nn.Module, most: int) -> int:
    vocabulary = int(text_config(model).vocab_size)
    id_1T = torch.arange(TRIAL_TOKENS, device=device_of(model))[None] % vocabulary

    def seconds(threads: int) -> float:
        with on_threads(threads):
            start = time.perf_counter()
            base_model(model)(input_ids=id_1T, use_cache=False)
            return time.perf_counter() - start

    seconds(1)
    one = min(seconds(1), seconds(1))
    several = seconds(most)
    if several < HOPELESS * one:
        several = min(several, seconds(most))
    if several <= GAIN * one:
        return most
    _say(
        f"a short pass takes {1000 * one:.0f} ms on one thread and {1000 * several:.0f} ms on "
        f"{most}: one is used (set OMP_NUM_THREADS to decide)."
    )
    return 1


def say_slow_type(model: nn.Module) -> None:
    """Say on stderr that a model in float16 is slow on a CPU, which has no arithmetic for it."""
    if device_of(model).type == "cpu" and next(model.parameters()).dtype == torch.float16:
        _say(
            "float16 is slow on a CPU: bfloat16 was 6.6 times as fast, float32 3 times "
            "(--dtype; float32 holds the same numbers)."
        )


@cache
def _say(what: str) -> None:
    print(what[:1].upper() + what[1:], file=sys.stderr, flush=True)
