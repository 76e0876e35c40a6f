"""How alike two checkpoints' neurons are, and which of them correspond.

Shape legend: F units, K concatenated width (3 x the model's width).
"""

import numpy as np
import torch
from torch import Tensor

from surgeon.checkpoint import Checkpoint, map_tensor
from surgeon.neurons import Site
from surgeon.transplant.report import Similarity

SAMPLED_LAYERS, SAMPLED_UNITS = 8, 64


def stored(
    checkpoint: Checkpoint,
    site: Site,
    role: str,
    units: slice | None = None,
    *,
    ahead: bool = True,
) -> Tensor:
    """One projection of a block, or of some of its units, as a mapping of the file."""
    slab = site.slab(role)
    info = checkpoint.tensors[slab.name]
    mapped = map_tensor(checkpoint.path / info.shard, info, ahead=ahead)
    return slab.view(mapped, site.n_units, units)


def unit_vectors(checkpoint: Checkpoint, site: Site, units: slice | None = None) -> Tensor:
    """(F, K) float32 of length 1: gate row, up row and down column of each unit, side by side."""
    parts = []
    for role in ("gate", "up", "down"):
        part = stored(checkpoint, site, role, units, ahead=units is None).float()
        parts.append(part.mT if role == "down" else part)
    vectors_FK = torch.cat(parts, 1)
    return vectors_FK / vectors_FK.norm(dim=1, keepdim=True).clamp_min(1e-30)


def sampled_similarity(
    recipient: Checkpoint,
    donor: Checkpoint,
    recipient_sites: list[Site],
    donor_sites: list[Site],
    seed: int,
) -> Similarity:
    """Similarity over blocks of units, one block in each of some layers spread over the depth."""
    rng = np.random.default_rng([seed, 7])
    chosen = np.unique(np.linspace(0, len(recipient_sites) - 1, SAMPLED_LAYERS).round().astype(int))
    same, shuffled = [], []
    for here, there in ((recipient_sites[i], donor_sites[i]) for i in chosen):
        begin = int(rng.integers(0, max(1, here.n_units - SAMPLED_UNITS + 1)))
        units = slice(begin, min(begin + SAMPLED_UNITS, here.n_units))
        a_FK = unit_vectors(recipient, here, units)
        b_FK = unit_vectors(donor, there, units)
        same.append((a_FK * b_FK).sum(1))
        if len(a_FK) > 1:
            shuffled.append((a_FK * b_FK.roll(int(rng.integers(1, len(a_FK))), 0)).sum(1))
    other = float(torch.cat(shuffled).mean()) if shuffled else 0.0
    return Similarity(same=float(torch.cat(same).mean()), shuffled=other)


def matching(
    recipient: Checkpoint, donor: Checkpoint, recipient_site: Site, donor_site: Site
) -> tuple[np.ndarray, float, float, float]:
    """The one-to-one assignment of the donor's units that makes cosines sum to the most.

    Returns order_F (unit u of the recipient is matched to unit order_F[u] of the donor, both
    within the site) and the summed cosine before, after, and between all pairs on average. Memory
    is about 20 bytes per pair of units of one site.
    """
    from scipy.optimize import linear_sum_assignment

    cosine_FF = (
        unit_vectors(recipient, recipient_site) @ unit_vectors(donor, donor_site).mT
    ).numpy()
    _, order_F = linear_sum_assignment(cosine_FF, maximize=True)
    n_units = len(order_F)
    before = float(cosine_FF.diagonal().sum(dtype=np.float64))
    after = float(cosine_FF[np.arange(n_units), order_F].sum(dtype=np.float64))
    strangers = float(cosine_FF.sum(dtype=np.float64)) - before
    return order_F, before, after, strangers / max(1, n_units - 1)
