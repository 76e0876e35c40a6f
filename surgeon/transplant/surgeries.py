"""What is done to the neurons that move.

A surgery is a function of (recipient, donor, mask_F, axis): two tensors of one projection, the
units that move, and the units' axis (0 for rows of gate and up and their biases, 1 for columns of
down). It returns the recipient's new tensor, or a pair (recipient's, donor's). It changes neither
input, and keeps shape and dtype. What it does outside the mask is dropped.

A surgery sees whole tensors. One whose row says `unitwise` looks at each unit by itself: it is
given the chosen units alone (its mask is all True), and the rest isn't even read.
"""

# Shapes: F units, C chosen units.

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from surgeon import named
from surgeon.errors import BadInput

SurgeryFunction = Callable[..., Tensor | tuple[Tensor, Tensor]]
"""(recipient, donor, mask_F, axis), and alpha for one that blends."""


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


class Surgery(NamedTuple):
    """A surgery and what may be relied on when it is performed."""

    function: SurgeryFunction
    donor: bool = True
    """Whether it needs a donor."""
    pair: bool = False
    """Whether it gives a new donor too."""
    copies: bool = False
    """Whether the new units are the other side's as they are, so that the old ones aren't read."""
    unitwise: bool = False
    """Whether it looks at each unit by itself."""
    blends: bool = False
    """Whether it takes `alpha`, the share of the donor."""
    below_one: str = ""
    """The row that takes its place with an alpha below 1."""
    roles: tuple[str, ...] | None = None
    """The projections it changes; None: all. Files of the others need not be written."""
    name: str = ""


SURGERIES = {
    "replace": Surgery(replace, copies=True, unitwise=True, below_one="blend"),
    "blend": Surgery(blend, unitwise=True, blends=True),
    "swap": Surgery(swap, pair=True, copies=True, unitwise=True),
    "ablate": Surgery(ablate, donor=False, unitwise=True, roles=("down",)),
}


def surgery_of(name: str, alpha: float) -> Surgery:
    """The surgery of that name (`SURGERIES` or `module:function`), bound to its alpha.

    Raises `BadInput` for an unknown name, a function that breaks the rules, or an alpha that the
    surgery doesn't take.
    """
    row = named.row(SURGERIES, name, "surgery")
    if not isinstance(row, Surgery):
        row = Surgery(row, pair=_returns_pair(name, row))
    if alpha < 1 and row.below_one:
        return surgery_of(row.below_one, alpha)
    if row.blends:
        return row._replace(name=name, function=partial(row.function, alpha=alpha))
    if alpha != 1:
        raise BadInput(f"alpha blends; with --surgery {name} leave it out.")
    return row._replace(name=name)


def _returns_pair(name: str, function: SurgeryFunction) -> bool:
    """Whether a foreign surgery returns a pair; raises `BadInput` where it breaks the rules."""
    mask_F = torch.tensor([True, False, True])
    pairs = set()
    for shape, axis in (((3, 2), 0), ((2, 3), 1), ((3,), 0)):
        recipient = torch.arange(6.0).bfloat16()[: math.prod(shape)].reshape(shape)
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
    surgery: Surgery, recipient: Tensor, donor: Tensor, mask_F: Tensor, axis: int, side: int
) -> None:
    """Perform a surgery in the memory of one side (0 recipient, 1 donor), inside the mask only."""
    unit_C, both = mask_F.nonzero().squeeze(1), (recipient, donor)
    if surgery.copies:
        new = both[1 - side].index_select(axis, unit_C)
    else:
        if surgery.unitwise:
            both = tuple(tensor.index_select(axis, unit_C) for tensor in both)
            mask_F = torch.ones(len(unit_C), dtype=torch.bool)
        result = surgery.function(*both, mask_F, axis)
        new = result[side] if isinstance(result, tuple) else result
        new = new if surgery.unitwise else new.index_select(axis, unit_C)
    (recipient, donor)[side].index_copy_(axis, unit_C, new)
