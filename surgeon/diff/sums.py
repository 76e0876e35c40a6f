"""What two tensors have in common, summed over pieces that fit in memory."""

# Shape letters: N elements of one tensor, flattened.

import math
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from surgeon.checkpoint import Checkpoint, map_tensor
from surgeon.merge.aligned import Aligned

PIECE = 1 << 22
"""Elements that are compared at once."""
UNMOVED = 1e-5
"""A weight that moved by no more counts as unmoved."""


class Sums(NamedTuple):
    """Sums over the elements of one tensor, or of several."""

    n: int = 0
    equal: int = 0
    """Elements that are the same in both, in every bit where the dtypes are."""
    unmoved: int = 0
    """Elements that differ by at most `UNMOVED`."""
    aa: float = 0.0
    """Squared norm of the first."""
    bb: float = 0.0
    ab: float = 0.0
    """Their product."""
    dd: float = 0.0
    """Squared norm of the difference."""
    largest: float = 0.0
    """The largest difference of two elements."""

    def plus(self, other: "Sums") -> "Sums":
        """Of both together."""
        return Sums(
            self.n + other.n,
            self.equal + other.equal,
            self.unmoved + other.unmoved,
            self.aa + other.aa,
            self.bb + other.bb,
            self.ab + other.ab,
            self.dd + other.dd,
            max(self.largest, other.largest),
        )

    @property
    def relative(self) -> float | None:
        """Norm of the difference over that of the first; None where the first is all zeros."""
        return math.sqrt(self.dd / self.aa) if self.aa > 0 else (0.0 if self.dd == 0 else None)

    @property
    def cosine(self) -> float | None:
        """None where one is all zeros."""
        norms = math.sqrt(self.aa) * math.sqrt(self.bb)
        return min(1.0, max(-1.0, self.ab / norms)) if norms > 0 else None


def compared(first: Checkpoint, second: Checkpoint, name: str) -> Sums:
    """The sums of one tensor that both have, in one shape; its pages are read and dropped."""
    total = Sums()
    for a_N, b_N in pieces(stored(first, name), stored(second, name)):
        equal = int((a_N == b_N).sum())
        a, b = a_N.double(), b_N.double()
        d = b - a
        size = d.abs()
        total = total.plus(
            Sums(
                a.numel(), equal, int((size <= UNMOVED).sum()), float(a @ a), float(b @ b),
                float(a @ b), float(d @ d), float(size.max()),
            )
        )  # fmt: skip
    return total


def pieces(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both, flat, piece by piece."""
    a_N, b_N = a.reshape(-1), b.reshape(-1)
    for start in range(0, a_N.numel(), PIECE):
        yield a_N[start : start + PIECE], b_N[start : start + PIECE]


def stored(checkpoint: Checkpoint, name: str) -> Tensor:
    """A tensor as a mapping of its file, where it lies in one."""
    if isinstance(checkpoint, Aligned):
        return checkpoint.tensor(name)
    info = checkpoint.tensors[name]
    return map_tensor(checkpoint.path / info.shard, info, ahead=True)


def finite(sums: Sums) -> bool:
    """Whether no element of either is NaN or infinite."""
    return math.isfinite(sums.aa) and math.isfinite(sums.bb)
