"""How much of two checkpoints' difference lies in the units that move."""

# Shapes: L layers, F units per layer.

import math
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from surgeon.checkpoint import TensorInfo, map_tensor
from surgeon.neurons import Slab
from surgeon.threads import one_thread
from surgeon.transplant.pair import Pair, aligned_donor, places
from surgeon.transplant.similarity import stored

COUNTED = 1 << 18
"""Entries of one projection of one block that are compared for the weight difference, at most."""
PLACES = 16
"""Places of a large tensor outside the FFN, spread over it, whose rows stand for all: of an
embedding single neighbourhoods of tokens differ more than all others, or not at all."""


def squared_difference(
    recipient: Tensor, donor: Tensor, axis: int, seed: int = 0, *, whole: bool = False
) -> Tensor:
    """(F,) float64: per unit, the sum of squared differences of one projection.

    Of a projection with more than `COUNTED` entries it is estimated from about that many, unless
    the `whole` is asked for: a block of model dimensions that the seed chooses, the same for every
    unit, scaled up. That is enough for a sum over units, and not for one unit's own.
    """
    if recipient.dim() == 1:
        return (recipient.double() - donor.double()).square()
    width, n_units = recipient.shape[1 - axis], recipient.shape[axis]
    counted = width if whole else max(1, min(width, COUNTED // max(1, n_units)))
    if counted < width:
        begin = counted * int(np.random.default_rng(seed).integers(width // counted))
        recipient = recipient.narrow(1 - axis, begin, counted)
        donor = donor.narrow(1 - axis, begin, counted)
    total_F = (recipient.float() - donor.float()).square_().sum(1 - axis, dtype=torch.float64)
    return total_F * (width / counted)


@dataclass
class Difference:
    """Squared differences between the pair's FFN weights, per unit, gathered as they are read.

    Measuring is woven into writing because both need every touched projection of both checkpoints,
    and reading those is what takes the time. `write` adds what it reads (from several threads, so
    the sums are locked); `share` reads the rest, and all of it in a dry run.
    """

    pair: Pair
    whole: bool = False
    """Whether every entry is compared, for numbers of single units."""
    energy_LF: np.ndarray = field(init=False)
    seen: set[tuple[int, str]] = field(default_factory=set)
    lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        shape = (self.pair.recipient.n_layers, self.pair.recipient.d_ff)
        self.energy_LF = np.zeros(shape)

    @property
    def sampled(self) -> bool:
        """Whether any projection has more entries than are compared."""
        width = int(self.pair.recipient.text_config["hidden_size"])
        return any(site.n_units * width > COUNTED for site in self.pair.recipient_sites)

    def add(self, index: int, slab: Slab, recipient: Tensor, donor: Tensor) -> None:
        """Count one projection of block `index`; both as `Slab.view` gives them, and aligned."""
        site = self.pair.recipient_sites[index]
        energy_F = squared_difference(
            recipient, donor, slab.canonical_axis, seed=index, whole=self.whole
        )
        with self.lock:
            self.energy_LF[site.layer, site.span] += energy_F.numpy()
            self.seen.add((index, slab.role))

    def _read(self, index: int, slab: Slab, moved_LF: np.ndarray) -> None:
        site = self.pair.recipient_sites[index]
        if moved_LF[site.layer, site.span].any():
            part = stored(self.pair.recipient, site, slab.role)
            self.add(index, slab, part, aligned_donor(self.pair, index, slab.role, part.dtype))
        else:
            self._add_some(index, slab)

    def _add_some(self, index: int, slab: Slab) -> None:
        """Count a block without moved units, of which only the sum matters, reading little of it.

        Of gate and up some neighbouring units stand for all; of down `add` reads some rows only.
        """
        site, there = self.pair.recipient_sites[index], self.pair.donor_sites[index]
        count = max(1, COUNTED // int(self.pair.recipient.text_config["hidden_size"]))
        if slab.canonical_axis == 1 or count >= site.n_units:
            units = slice(0, site.n_units)
        else:
            begin = int(np.random.default_rng(index).integers(site.n_units - count + 1))
            units = slice(begin, begin + count)
        here = stored(self.pair.recipient, site, slab.role, units, ahead=False)
        far = stored(self.pair.donor, there, slab.role, units, ahead=False).to(here.dtype)
        energy_F = squared_difference(here, far, slab.canonical_axis, seed=index)
        self.energy_LF[site.layer, site.span] += float(energy_F.mean())

    def share(self, moved_LF: np.ndarray) -> float:
        """Share of the squared difference inside the mask; reads what no one has counted yet.

        With matching, only blocks with moved units are compared: the others were not aligned.
        """
        compared_LF = np.ones_like(moved_LF)
        if self.pair.order_LF is not None:
            for site in self.pair.recipient_sites:
                compared_LF[site.layer, site.span] = moved_LF[site.layer, site.span].any()
        with one_thread():
            for entries in places(self.pair, compared_LF).values():
                for index, slab in entries:
                    if (index, slab.role) not in self.seen:
                        self._read(index, slab, moved_LF)
        self.energy_LF *= compared_LF
        total = self.energy_LF.sum()
        return float(self.energy_LF[moved_LF].sum() / total) if total else 0.0

    def outside(self) -> float | None:
        """Share of the pair's whole squared difference that lies outside the FFN units, where no
        transplant reaches; after `share`. Of each large tensor some rows stand for all.

        None where the FFN's difference isn't known whole (with matching), nothing differs, a weight
        isn't finite, or a tensor outside has no partner of its name and shape.
        """
        if self.pair.order_LF is not None:
            return None
        here, there = self.pair.recipient, self.pair.donor
        inside = places(self.pair, np.ones_like(self.energy_LF, dtype=bool)).keys()
        total = 0.0
        with one_thread():
            for number, (name, info) in enumerate(sorted(here.tensors.items())):
                if name in inside or 0 in info.shape:
                    continue
                partner = there.tensors.get(name)
                if partner is None or partner.shape != info.shape:
                    return None
                one = _rows(here.path / info.shard, info, number)
                other = _rows(there.path / partner.shard, partner, number)
                energy = float((one.double() - other.double()).square().sum())
                total += energy * math.prod(info.shape) / one.numel()
        whole = total + float(self.energy_LF.sum())
        return total / whole if whole and math.isfinite(whole) else None


def _rows(file: Path, info: TensorInfo, seed: int) -> Tensor:
    """Rows of a tensor, about `COUNTED` entries, at places spread over it that the seed chooses."""
    tensor = map_tensor(file, info, ahead=False)
    tensor = tensor.reshape(1) if tensor.dim() == 0 else tensor
    count = max(1, COUNTED // max(1, math.prod(info.shape[1:])))
    if count >= len(tensor):
        return tensor
    places, rng = min(PLACES, count), np.random.default_rng(seed)
    ends, each = np.linspace(0, len(tensor), places + 1).astype(int).tolist(), count // places
    starts = [int(rng.integers(a, b - each + 1)) for a, b in pairwise(ends)]
    return torch.cat([tensor.narrow(0, start, each) for start in starts])
