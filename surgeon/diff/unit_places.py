"""Whether FFN units of one checkpoint are in other places in the other."""

# Shape letters: F units of a block, U units that are looked for, K concatenated width.

import numpy as np
import torch

from surgeon.artifact import part
from surgeon.checkpoint import FLOATS, Checkpoint
from surgeon.errors import BadInput
from surgeon.neurons import Site, sites
from surgeon.progress import bar
from surgeon.transplant.similarity import unit_vectors

BLOCKS = 4
"""Blocks of a layer (experts) in which units are looked for, at most."""
AT_ONCE = 1024
"""Units of the other that are compared at once."""
COPY = 0.9
"""Cosine from which a unit is taken for the same unit in another place."""


@part
class UnitPlaces:
    """Units of one layer, each looked for among all units of its block in the other."""

    layer: int
    units: int
    """Units that were looked for."""
    in_place: int
    """Of them those whose most similar unit has the same number."""
    elsewhere: int
    """Of the rest those whose most similar unit has a cosine of `COPY` or more: they moved."""
    same: float
    """Mean cosine with the unit of the same number."""
    nearest: float
    """Mean cosine with the most similar unit."""


def unit_places(first: Checkpoint, second: Checkpoint, units: int) -> tuple[UnitPlaces, ...]:
    """Units by layer; empty where the FFNs of the two don't correspond, or aren't of gated units.

    A share of evenly spread units stands for all, in up to `BLOCKS` experts of a layer.
    """
    if units == 0:
        return ()
    try:
        here, there = sites(first), sites(second)
    except BadInput:
        return ()
    shapes = [[(s.layer, s.first, s.n_units) for s in found] for found in (here, there)]
    dtypes = {c.tensors[b.name].dtype for c, found in ((first, here), (second, there))
              for s in found for b in s.slabs}  # fmt: skip
    if shapes[0] != shapes[1] or not dtypes <= set(FLOATS):
        return ()
    by_layer: dict[int, list[int]] = {}
    for n, site in enumerate(here):
        by_layer.setdefault(site.layer, []).append(n)
    found = []
    with bar("FFN units", len(by_layer)) as advance:
        for layer, blocks in by_layer.items():
            some = np.unique(np.linspace(0, len(blocks) - 1, BLOCKS).round().astype(int))
            pairs = [(here[blocks[n]], there[blocks[n]]) for n in some]
            found.append(_layer(first, second, layer, pairs, max(1, units // len(pairs))))
            advance(1)
    return tuple(found)


def _layer(
    first: Checkpoint, second: Checkpoint, layer: int, pairs: list[tuple[Site, Site]], units: int
) -> UnitPlaces:
    n = in_place = elsewhere = 0
    same, nearest = 0.0, 0.0
    for here, there in pairs:
        own_U = torch.from_numpy(
            np.unique(
                np.linspace(0, here.n_units - 1, min(units, here.n_units)).round().astype(int)
            )
        )
        wanted_UK = unit_vectors(first, here)[own_U]
        cosine_UF = torch.cat(
            [
                wanted_UK @ unit_vectors(second, there, slice(start, start + AT_ONCE)).mT
                for start in range(0, there.n_units, AT_ONCE)
            ],
            1,
        )
        best_U, where_U = cosine_UF.max(1)
        own = cosine_UF[torch.arange(len(own_U)), own_U]
        # A unit as near as the nearest is in place, whichever of equals `max` names.
        stays_U = (where_U == own_U) | (own >= best_U - 1e-6)
        n += len(own_U)
        in_place += int(stays_U.sum())
        elsewhere += int((~stays_U & (best_U >= COPY)).sum())
        same += float(own.sum())
        nearest += float(best_U.sum())
    return UnitPlaces(layer=layer, units=n, in_place=in_place, elsewhere=elsewhere,
                      same=same / n, nearest=nearest / n)  # fmt: skip
