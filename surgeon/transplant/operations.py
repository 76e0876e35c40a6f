"""What is done to the neurons that move, and how alike two checkpoints' neurons are.

A surgery is a function of (recipient, donor, mask_F, axis): two tensors of one projection, the
units that move, and the units' axis (0 for rows of gate and up and their biases, 1 for columns of
down). It returns the recipient's new tensor, or a pair (recipient's, donor's). It changes neither
input, and keeps shape and dtype.
"""

# Shapes: F units, D model width, K concatenated width (3 D).

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from surgeon import named
from surgeon.checkpoint import Checkpoint
from surgeon.errors import BadInput
from surgeon.neurons import Site

Surgery = Callable[[Tensor, Tensor, Tensor, int], "Tensor | tuple[Tensor, Tensor]"]
SAMPLED_LAYERS, SAMPLED_UNITS = 8, 64
COUNTED = 1 << 18
"""Entries of one projection of one block that are compared for the weight difference, at most."""


def _along(mask_F: Tensor, like: Tensor, axis: int) -> Tensor:
    return mask_F.view([-1 if d == axis else 1 for d in range(like.dim())])


def replace(recipient: Tensor, donor: Tensor, mask_F: Tensor, axis: int) -> Tensor:
    """The recipient with the donor's units in place of its own."""
    if mask_F.all():
        return donor
    return torch.where(_along(mask_F, recipient, axis), donor, recipient)


def blend(
    recipient: Tensor, donor: Tensor, mask_F: Tensor, axis: int, *, alpha: float = 0.5
) -> Tensor:
    """The recipient with its units moved by the share `alpha` towards the donor's.

    Computed in float32 (float64 for float64 tensors); 0 and 1 give the bits of either.
    """
    if alpha == 0:
        return recipient.clone()
    if alpha == 1:
        return replace(recipient, donor, mask_F, axis)
    wide = torch.promote_types(recipient.dtype, torch.float32)
    mixed = torch.lerp(recipient.to(wide), donor.to(wide), alpha).to(recipient.dtype)
    return replace(recipient, mixed, mask_F, axis)


def swap(recipient: Tensor, donor: Tensor, mask_F: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Both, with each other's units."""
    return replace(recipient, donor, mask_F, axis), replace(donor, recipient, mask_F, axis)


def ablate(recipient: Tensor, donor: Tensor, mask_F: Tensor, axis: int) -> Tensor:
    """The recipient with the down columns of its units at zero, so that they add nothing."""
    if axis == 0:
        return recipient.clone()
    return recipient.masked_fill(_along(mask_F, recipient, axis), 0)


SURGERIES: dict[str, Surgery] = {
    "replace": replace,
    "blend": blend,
    "swap": swap,
    "ablate": ablate,
}


class Operation(NamedTuple):
    """A surgery that has been looked up, bound to its alpha and tried on a small example."""

    name: str
    function: Surgery
    pair: bool
    """Whether it gives a new donor too."""
    needs_donor: bool
    down_only: bool
    """Whether gate and up stay as they are, so that their files need not be written."""
    copies: bool
    """Whether the new units are the donor's as they are."""
    own: bool
    """Whether it comes from outside this package, and is held to the mask."""


def operation(name: str, alpha: float) -> Operation:
    """The surgery of that name (`SURGERIES` or `module:function`); raises `BadInput`."""
    if not 0 <= alpha <= 1:
        raise BadInput(f"found alpha {alpha:g}, expected a number from 0 (nothing) to 1 (replace).")
    if alpha != 1 and name not in ("replace", "blend"):
        raise BadInput(f"alpha blends; with --surgery {name} leave it out.")
    if name in ("replace", "blend"):
        function: Surgery = partial(blend, alpha=alpha)
        copies = alpha == 1
        name = name if copies else "blend"
        return Operation(name, function, False, True, False, copies, False)
    if name in SURGERIES:
        down_only = name == "ablate"
        return Operation(
            name, SURGERIES[name], name == "swap", not down_only, down_only, name == "swap", False
        )
    if ":" not in name:
        raise BadInput(
            f"found surgery {name!r}, expected {', '.join(SURGERIES)} or module:function."
        )
    function = named.function(name, "surgery")  # pyright: ignore[reportAssignmentType]
    return Operation(name, function, _tried(name, function), True, False, False, True)


def _tried(name: str, function: Surgery) -> bool:
    """Whether a foreign surgery returns a pair; raises `BadInput` where it breaks the rules."""
    mask_F = torch.tensor([True, False, True])
    pairs = set()
    for shape, axis in (((3, 2), 0), ((2, 3), 1), ((3,), 0)):
        recipient = torch.arange(6.0).bfloat16()[: int(np.prod(shape))].reshape(shape)
        donor = -recipient - 1
        before = recipient.clone(), donor.clone()
        result = function(recipient, donor, mask_F, axis)
        results = result if isinstance(result, tuple) else (result,)
        pairs.add(len(results) == 2)
        good = len(results) in (1, 2) and all(
            isinstance(r, Tensor) and r.shape == recipient.shape and r.dtype == recipient.dtype
            for r in results
        )
        if not good or len(pairs) > 1:
            raise BadInput(
                f"{name} must return the recipient's new tensor, or a pair of tensors, of the "
                f"same shape and dtype; for {list(shape)} bfloat16 it returned "
                + " and ".join(
                    f"{list(r.shape)} {r.dtype}" if isinstance(r, Tensor) else type(r).__name__
                    for r in results
                )
                + "."
            )
        if not (torch.equal(recipient, before[0]) and torch.equal(donor, before[1])):
            raise BadInput(f"{name} changes its inputs; it must return new tensors.")
    return pairs.pop()


def operate(
    doing: Operation, recipient: Tensor, donor: Tensor, mask_F: Tensor, axis: int, side: int
) -> None:
    """Perform a surgery in the memory of one side (0 recipient, 1 donor), inside the mask only.

    A surgery from outside sees whole tensors. Those of this package work unit by unit, so they
    are given the chosen units alone, and the rest is not even read; where they only copy, the old
    units aren't read either.
    """
    unit_C = mask_F.nonzero().squeeze(1)
    if doing.copies:
        new = (donor, recipient)[side].index_select(axis, unit_C)
    elif doing.own:
        result = doing.function(recipient, donor, mask_F, axis)
        new = (result[side] if isinstance(result, tuple) else result).index_select(axis, unit_C)
    else:
        both = recipient.index_select(axis, unit_C), donor.index_select(axis, unit_C)
        result = doing.function(*both, torch.ones(len(unit_C), dtype=torch.bool), axis)
        new = result[side] if isinstance(result, tuple) else result
    (recipient, donor)[side].index_copy_(axis, unit_C, new)


def squared_difference(recipient: Tensor, donor: Tensor, axis: int, seed: int = 0) -> Tensor:
    """(F,) float64: per unit, the sum of squared differences of one projection.

    Of a projection with more than `COUNTED` entries it is estimated from about that many: a block
    of model dimensions that the seed chooses, the same for every unit, scaled up.
    """
    if recipient.dim() == 1:
        return (recipient.double() - donor.double()).square()
    width, n_units = recipient.shape[1 - axis], recipient.shape[axis]
    counted = max(1, min(width, COUNTED // max(1, n_units)))
    if counted < width:
        begin = counted * int(np.random.default_rng(seed).integers(width // counted))
        recipient = recipient.narrow(1 - axis, begin, counted)
        donor = donor.narrow(1 - axis, begin, counted)
    total_F = (recipient.float() - donor.float()).square_().sum(1 - axis, dtype=torch.float64)
    return total_F * (width / counted)


# --- how alike units are ------------------------------------------------------------------------


class Similarity(NamedTuple):
    """Mean cosine between units of two checkpoints, each [gate | up | down] in one vector."""

    same: float
    """Between units of the same number."""
    shuffled: float
    """Between units of different numbers: what unrelated models would show."""

    @property
    def low(self) -> bool:
        """True when same-numbered units are nearer to strangers than to copies of each other."""
        return self.same - self.shuffled < 0.5 * (1 - self.shuffled)


def unit_vectors(checkpoint: Checkpoint, site: Site, units: slice | None = None) -> Tensor:
    """(F, K) float32 of length 1: gate row, up row and down column of each unit, side by side."""
    from safetensors import safe_open

    parts = []
    for role in ("gate", "up", "down"):
        slab = site.slab(role)
        with safe_open(checkpoint.path / checkpoint.tensors[slab.name].shard, "pt") as file:
            part = file.get_slice(slab.name)[slab.index(units, site.n_units)]
        parts.append(part.float() if slab.axis == 0 else part.float().mT)
    vectors_FK = torch.cat(parts, 1)
    return vectors_FK / vectors_FK.norm(dim=1, keepdim=True).clamp_min(1e-30)


def sampled_similarity(
    recipient: Checkpoint,
    donor: Checkpoint,
    mine: list[Site],
    theirs: list[Site],
    seed: int,
) -> Similarity:
    """Similarity over blocks of units, one block in each of some layers spread over the depth."""
    rng = np.random.default_rng([seed, 7])
    chosen = np.unique(np.linspace(0, len(mine) - 1, SAMPLED_LAYERS).round().astype(int))
    same, shuffled = [], []
    for here, there in ((mine[i], theirs[i]) for i in chosen):
        begin = int(rng.integers(0, max(1, here.n_units - SAMPLED_UNITS + 1)))
        units = slice(begin, min(begin + SAMPLED_UNITS, here.n_units))
        a_FK = unit_vectors(recipient, here, units)
        b_FK = unit_vectors(donor, there, units)
        same.append((a_FK * b_FK).sum(1))
        if len(a_FK) > 1:
            shuffled.append((a_FK * b_FK.roll(int(rng.integers(1, len(a_FK))), 0)).sum(1))
    other = float(torch.cat(shuffled).mean()) if shuffled else 0.0
    return Similarity(float(torch.cat(same).mean()), other)


def matching(
    recipient: Checkpoint, donor: Checkpoint, mine: Site, theirs: Site
) -> tuple[np.ndarray, float, float, float]:
    """The one-to-one assignment of the donor's units that makes cosines sum to the most.

    Returns order_F (unit u of the recipient is matched to unit order_F[u] of the donor, both
    within the site) and the summed cosine before, after, and between all pairs on average. Memory
    is about 20 bytes per pair of units of one site.
    """
    from scipy.optimize import linear_sum_assignment

    cosine_FF = (unit_vectors(recipient, mine) @ unit_vectors(donor, theirs).mT).numpy()
    _, order_F = linear_sum_assignment(cosine_FF, maximize=True)
    n_units = len(order_F)
    before = float(cosine_FF.diagonal().sum(dtype=np.float64))
    after = float(cosine_FF[np.arange(n_units), order_F].sum(dtype=np.float64))
    strangers = float(cosine_FF.sum(dtype=np.float64)) - before
    return order_F, before, after, strangers / max(1, n_units - 1)
