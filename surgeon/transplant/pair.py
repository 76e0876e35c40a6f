"""Two checkpoints whose units correspond: where each unit is stored, and which goes where."""

# Shapes: L layers, F units per layer.

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from surgeon.checkpoint import FLOATS, Checkpoint
from surgeon.errors import BadInput
from surgeon.neurons import Site, Slab, sites
from surgeon.progress import bar
from surgeon.transplant.report import Similarity
from surgeon.transplant.similarity import matching, stored


class Pair(NamedTuple):
    """A recipient and a donor of one shape; `order_LF` says whose unit goes where."""

    recipient: Checkpoint
    donor: Checkpoint
    recipient_sites: list[Site]
    """The recipient's blocks of units."""
    donor_sites: list[Site]
    """The donor's, in the same order."""
    order_LF: np.ndarray | None = None
    """Recipient's unit u gets the donor's unit order_LF[l, u]; None: of the same number."""

    @property
    def exists_LF(self) -> np.ndarray:
        """(L, F) bool: False where a layer has fewer than `d_ff` units."""
        exists_LF = np.zeros((self.recipient.n_layers, self.recipient.d_ff), bool)
        for site in self.recipient_sites:
            exists_LF[site.layer, site.span] = True
        return exists_LF

    def exchanged(self) -> "Pair":
        """The same pair with the roles exchanged."""
        order_LF = None if self.order_LF is None else np.argsort(self.order_LF, axis=1)
        return Pair(self.donor, self.recipient, self.donor_sites, self.recipient_sites, order_LF)

    def order_F(self, index: int) -> Tensor | None:
        """The donor's units for the block `index`, numbered within the block."""
        if self.order_LF is None:
            return None
        site = self.recipient_sites[index]
        return torch.from_numpy(self.order_LF[site.layer, site.span] - site.first)


def corresponding(recipient: Checkpoint, donor: Checkpoint) -> Pair:
    """Both with the places of their units; raises `BadInput` naming what differs in shape."""
    for what, of in _TRAITS.items():
        here, there = of(recipient), of(donor)
        if here != there:
            raise BadInput(
                f"recipient {recipient.spec} has {what} {here}, donor {donor.spec} has {there}. "
                "Units can only move between checkpoints of one shape."
            )
    recipient_sites = sites(recipient)
    donor_sites = recipient_sites if donor is recipient else sites(donor)
    layout = [[(s.layer, s.first, s.n_units, [b.role for b in s.slabs]) for s in x]
              for x in (recipient_sites, donor_sites)]  # fmt: skip
    for here, there in zip(*layout, strict=False):
        if here != there:
            raise BadInput(
                f"the FFNs of layer {here[0]} differ: {recipient.spec} has units {here[1]} to "
                f"{here[1] + here[2] - 1} with {', '.join(here[3])}, {donor.spec} has "
                f"{there[1]} to {there[1] + there[2] - 1} with {', '.join(there[3])}."
            )
    if len(recipient_sites) != len(donor_sites):
        raise BadInput(
            f"{recipient.spec} has {len(recipient_sites)} FFNs (counting experts), {donor.spec} "
            f"has {len(donor_sites)}."
        )
    for checkpoint, blocks in ((recipient, recipient_sites), (donor, donor_sites)):
        for slab in (slab for site in blocks for slab in site.slabs):
            dtype = checkpoint.tensors[slab.name].dtype
            if dtype not in FLOATS:
                raise BadInput(
                    f"{checkpoint.spec} stores {slab.name} as {dtype}: quantised weights can't be "
                    "moved unit by unit. Use the checkpoint they were made from."
                )
    return Pair(recipient, donor, recipient_sites, donor_sites)


def _activation(checkpoint: Checkpoint) -> str:
    # Gemma configs carry both, and the model reads the first.
    keys = ("hidden_activation", "hidden_act")
    named = next((checkpoint.text_config[k] for k in keys if checkpoint.text_config.get(k)), None)
    if named is None:
        # Left to the architecture's default. transformers knows it, and takes seconds to import.
        text = checkpoint.full_config.get_text_config()
        named = next((value for k in keys if (value := getattr(text, k, None))), None)
    return str(named)


_TRAITS: dict[str, Callable[[Checkpoint], object]] = {
    "the architecture": lambda c: c.model_type,
    "layers:": lambda c: c.n_layers,
    "FFN units per layer:": lambda c: c.d_ff,
    "hidden size": lambda c: c.text_config.get("hidden_size"),
    "the activation function": _activation,
}


def matched(pair: Pair, chosen_LF: np.ndarray) -> tuple[Pair, Similarity, Similarity]:
    """The pair with the donor's units assigned to the recipient's most alike, where units move.

    Assignment is within blocks: a unit stays in its expert. Also returns the similarity before and
    after, over the blocks matched.
    """
    order_LF = np.tile(np.arange(chosen_LF.shape[1]), (len(chosen_LF), 1))
    sums, count = np.zeros(3), 0
    used = [i for i, s in enumerate(pair.recipient_sites) if chosen_LF[s.layer, s.span].any()]
    with bar("match units", len(used)) as advance:
        for index in used:
            site = pair.recipient_sites[index]
            order_F, *cosines = matching(pair.recipient, pair.donor, site, pair.donor_sites[index])
            order_LF[site.layer, site.span] = site.first + order_F
            sums += cosines
            count += site.n_units
            advance(1)
    before, after, strangers = (sums / max(1, count)).tolist()
    before, after = (Similarity(same=same, shuffled=strangers) for same in (before, after))
    return pair._replace(order_LF=order_LF), before, after


def aligned_donor(pair: Pair, index: int, role: str, dtype: torch.dtype) -> Tensor:
    """The donor's projection of block `index` in the recipient's dtype and order of units."""
    site = pair.donor_sites[index]
    part = stored(pair.donor, site, role).to(dtype)
    order_F = pair.order_F(index)
    return part if order_F is None else part.index_select(site.slab(role).canonical_axis, order_F)


def places(
    pair: Pair, moved_LF: np.ndarray, roles: tuple[str, ...] | None = None
) -> dict[str, list[tuple[int, Slab]]]:
    """Tensor name -> the (block, slab) in it with units of the mask, of these roles or of all."""
    slabs: dict[str, list[tuple[int, Slab]]] = {}
    for index, site in enumerate(pair.recipient_sites):
        if moved_LF[site.layer, site.span].any():
            for slab in site.slabs:
                if roles is None or slab.role in roles:
                    slabs.setdefault(slab.name, []).append((index, slab))
    return slabs
