"""Two checkpoints mixed chunk by chunk on the CPU, in float32, rounded once.

float64 weights are mixed in float64. Every candidate is made from one reading of a chunk.

Shape legend: N elements of one tensor, flattened.
"""

import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 1 << 17
"""Elements mixed at a time: small enough that the float32 copies stay in a core's cache."""


class Recipe(NamedTuple):
    """How one tensor of one candidate is mixed."""

    mix: Callable[[Tensor, Tensor, tuple[float, ...], Tensor, Tensor], object]
    """(a_N, b_N, coefficients, out_N, spare_N); see `merge_methods.MergeMethod`."""
    coefficients: tuple[float, ...]


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype the arithmetic is done in for weights of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Scratch(threading.local):
    """Buffers of one thread for `mixed`, so that mixing allocates nothing."""

    def __init__(self) -> None:
        self.work: dict[torch.dtype, tuple[Tensor, ...]] = {}
        self.out: dict[torch.dtype, Tensor] = {}

    def floats(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        if dtype not in self.work:
            self.work[dtype] = tuple(torch.empty(CHUNK, dtype=dtype) for _ in range(4))
        return self.work[dtype]

    def rounded(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self.out:
            self.out[dtype] = torch.empty(CHUNK, dtype=dtype)
        return self.out[dtype]


def mixed(
    a_N: Tensor,
    b_N: Tensor,
    recipes: list[Recipe],
    dtype: torch.dtype,
    scratch: Scratch,
) -> Iterator[Tensor]:
    """Yield the mix of one chunk (N <= CHUNK) for each recipe, in `dtype`, reading a and b once.

    The inputs are first rounded to `dtype`, as mergekit does on loading. The tensor yielded is a
    buffer that the next step overwrites.
    """
    n, work = a_N.numel(), work_dtype(dtype)
    x, y, p, q = (buffer[:n] for buffer in scratch.floats(work))
    out = scratch.rounded(dtype)[:n]
    for source, wide in ((a_N, x), (b_N, y)):
        wide.copy_(source if source.dtype == dtype else out.copy_(source))
    for recipe in recipes:
        recipe.mix(x, y, recipe.coefficients, p, q)
        yield out.copy_(p) if dtype != work else p


def chunks(n: int) -> Iterator[tuple[int, int]]:
    """Start and stop of each chunk of `n` elements."""
    for start in range(0, n, CHUNK):
        yield start, min(n, start + CHUNK)
