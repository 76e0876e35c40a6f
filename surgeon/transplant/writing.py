"""Two checkpoints whose units correspond, and the streaming pass that exchanges some of them."""

# Shapes: L layers, F units per layer.

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from surgeon import lineage
from surgeon.checkpoint import FLOATS, Checkpoint, card, fenced, map_tensor, markdown_table, rewrite
from surgeon.errors import BadInput
from surgeon.neurons import Site, Slab, sites
from surgeon.progress import bar
from surgeon.threads import one_thread
from surgeon.transplant import operations
from surgeon.transplant.operations import Operation, matching, operate, squared_difference

WRITERS = 2
"""Shards written at a time: copying is mostly waiting, exchanging is mostly arithmetic."""


class Pair(NamedTuple):
    """A recipient and a donor of one shape; `order_LF` says whose unit goes where."""

    recipient: Checkpoint
    donor: Checkpoint
    mine: list[Site]
    """The recipient's blocks of units."""
    theirs: list[Site]
    """The donor's, in the same order."""
    order_LF: np.ndarray | None = None
    """Recipient's unit u gets the donor's unit order_LF[l, u]; None: of the same number."""

    @property
    def exists_LF(self) -> np.ndarray:
        """(L, F) bool: False where a layer has fewer than `d_ff` units."""
        exists_LF = np.zeros((self.recipient.n_layers, self.recipient.d_ff), bool)
        for site in self.mine:
            exists_LF[site.layer, site.span] = True
        return exists_LF

    def turned(self) -> "Pair":
        """The same pair with the roles exchanged."""
        order_LF = None if self.order_LF is None else np.argsort(self.order_LF, axis=1)
        return Pair(self.donor, self.recipient, self.theirs, self.mine, order_LF)

    def order_F(self, index: int) -> Tensor | None:
        """The donor's units for the block `index`, numbered within the block."""
        if self.order_LF is None:
            return None
        site = self.mine[index]
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
    mine = sites(recipient)
    theirs = mine if donor is recipient else sites(donor)
    layout = [[(s.layer, s.first, s.n_units, [b.role for b in s.slabs]) for s in x]
              for x in (mine, theirs)]  # fmt: skip
    for here, there in zip(*layout, strict=False):
        if here != there:
            raise BadInput(
                f"the FFNs of layer {here[0]} differ: {recipient.spec} has units {here[1]} to "
                f"{here[1] + here[2] - 1} with {', '.join(here[3])}, {donor.spec} has "
                f"{there[1]} to {there[1] + there[2] - 1} with {', '.join(there[3])}."
            )
    if len(mine) != len(theirs):
        raise BadInput(
            f"{recipient.spec} has {len(mine)} FFNs (counting experts), {donor.spec} has "
            f"{len(theirs)}."
        )
    for checkpoint, blocks in ((recipient, mine), (donor, theirs)):
        for slab in (slab for site in blocks for slab in site.slabs):
            dtype = checkpoint.tensors[slab.name].dtype
            if dtype not in FLOATS:
                raise BadInput(
                    f"{checkpoint.spec} stores {slab.name} as {dtype}: quantised weights can't be "
                    "moved unit by unit. Use the checkpoint they were made from."
                )
    return Pair(recipient, donor, mine, theirs)


def _activation(checkpoint: Checkpoint) -> str:
    text = checkpoint.full_config.get_text_config()
    # Gemma configs carry both, and the model reads the first.
    return str(getattr(text, "hidden_activation", None) or getattr(text, "hidden_act", None))


_TRAITS: dict[str, Callable[[Checkpoint], object]] = {
    "the architecture": lambda c: c.model_type,
    "layers:": lambda c: c.n_layers,
    "FFN units per layer:": lambda c: c.d_ff,
    "hidden size": lambda c: c.text_config.get("hidden_size"),
    "the activation function": _activation,
}


def matched(pair: Pair, chosen_LF: np.ndarray) -> tuple[Pair, "tuple[float, float, float]"]:
    """The pair with the donor's units assigned to the recipient's most alike, where units move.

    Assignment is within blocks: a unit stays in its expert. Also returns the mean cosine before,
    after, and between units of different numbers, over the blocks matched.
    """
    order_LF = np.tile(np.arange(chosen_LF.shape[1]), (len(chosen_LF), 1))
    sums, count = np.zeros(3), 0
    used = [i for i, s in enumerate(pair.mine) if chosen_LF[s.layer, s.span].any()]
    with bar("match units", len(used)) as advance:
        for index in used:
            site = pair.mine[index]
            order_F, *cosines = matching(pair.recipient, pair.donor, site, pair.theirs[index])
            order_LF[site.layer, site.span] = site.first + order_F
            sums += cosines
            count += site.n_units
            advance(1)
    before, after, strangers = (sums / max(1, count)).tolist()
    return pair._replace(order_LF=order_LF), (before, after, strangers)


@dataclass
class Difference:
    """Squared differences between the pair's FFN weights, per unit, gathered as they are read."""

    pair: Pair
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
        return any(site.n_units * width > operations.COUNTED for site in self.pair.mine)

    def add(self, index: int, slab: Slab, recipient: Tensor, donor: Tensor) -> None:
        """Count one projection of block `index`; both as `Slab.view` gives them, and aligned."""
        site = self.pair.mine[index]
        energy_F = squared_difference(recipient, donor, slab.canonical_axis, seed=index)
        with self.lock:
            self.energy_LF[site.layer, site.span] += energy_F.numpy()
            self.seen.add((index, slab.role))

    def _read(self, index: int, slab: Slab, moved_LF: np.ndarray) -> None:
        site = self.pair.mine[index]
        if moved_LF[site.layer, site.span].any():
            part = _stored(self.pair.recipient, site, slab.role)
            self.add(index, slab, part, _donors(self.pair, index, slab.role, part.dtype))
        else:
            self._add_some(index, slab)

    def _add_some(self, index: int, slab: Slab) -> None:
        """Count a block without moved units, of which only the sum matters, reading little of it.

        Of gate and up some neighbouring units stand for all; of down `add` reads some rows only.
        """
        site, there = self.pair.mine[index], self.pair.theirs[index]
        count = max(1, operations.COUNTED // int(self.pair.recipient.text_config["hidden_size"]))
        if slab.canonical_axis == 1 or count >= site.n_units:
            units = slice(0, site.n_units)
        else:
            begin = int(np.random.default_rng(index).integers(site.n_units - count + 1))
            units = slice(begin, begin + count)
        mine = _stored(self.pair.recipient, site, slab.role, units, ahead=False)
        theirs = _stored(self.pair.donor, there, slab.role, units, ahead=False).to(mine.dtype)
        energy_F = squared_difference(mine, theirs, slab.canonical_axis, seed=index)
        self.energy_LF[site.layer, site.span] += float(energy_F.mean())

    def share(self, moved_LF: np.ndarray) -> float:
        """Share of the squared difference inside the mask; reads what no one has counted yet.

        With matching, only blocks with moved units are compared: the others were not aligned.
        """
        compared_LF = np.ones_like(moved_LF)
        if self.pair.order_LF is not None:
            for site in self.pair.mine:
                compared_LF[site.layer, site.span] = moved_LF[site.layer, site.span].any()
        with one_thread():
            for entries in places(self.pair, compared_LF).values():
                for index, slab in entries:
                    if (index, slab.role) not in self.seen:
                        self._read(index, slab, moved_LF)
        self.energy_LF *= compared_LF
        total = self.energy_LF.sum()
        return float(self.energy_LF[moved_LF].sum() / total) if total else 0.0


def _stored(
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


def _donors(pair: Pair, index: int, role: str, dtype: torch.dtype) -> Tensor:
    """The donor's projection of block `index` in the recipient's dtype and order of units."""
    site = pair.theirs[index]
    part = _stored(pair.donor, site, role).to(dtype)
    order_F = pair.order_F(index)
    return part if order_F is None else part.index_select(site.slab(role).canonical_axis, order_F)


def places(
    pair: Pair, moved_LF: np.ndarray, *, down_only: bool = False
) -> dict[str, list[tuple[int, Slab]]]:
    """Tensor name -> the (block, slab) in it with units of the mask."""
    found: dict[str, list[tuple[int, Slab]]] = {}
    for index, site in enumerate(pair.mine):
        if moved_LF[site.layer, site.span].any():
            for slab in site.slabs:
                if slab.role == "down" or not down_only:
                    found.setdefault(slab.name, []).append((index, slab))
    return found


def write(
    pair: Pair,
    moved_LF: np.ndarray,
    doing: Operation,
    out: Path,
    *,
    side: int = 0,
    difference: Difference | None = None,
) -> None:
    """Write the new recipient (side 0) or the new donor (side 1, of a turned pair) into `out`.

    Surgeries see recipient and donor as the user named them on either side.
    """
    changed = places(pair, moved_LF, down_only=doing.down_only)
    with bar(f"write {out.name.removesuffix('.partial')}", len(changed)) as advance:

        def edit(name: str, tensor: Tensor) -> Tensor:
            for index, slab in changed[name]:
                site = pair.mine[index]
                old = slab.view(tensor, site.n_units)
                mask_F = torch.from_numpy(moved_LF[site.layer, site.span])
                other = _donors(pair, index, slab.role, old.dtype) if doing.needs_donor else old
                if difference is not None and doing.needs_donor:
                    difference.add(index, slab, old, other)
                both = (old, other) if side == 0 else (other, old)
                operate(doing, *both, mask_F, slab.canonical_axis, side)
            advance(1)
            return tensor

        source = pair.recipient
        tensor = max((source.tensors[name].nbytes for name in changed), default=0)
        shard = max((source.path / name).stat().st_size for name in source.shards)
        # Each writer holds a tensor of both sides; together no more than the largest shards.
        threads = max(1, min(WRITERS, shard // max(1, tensor)))
        with one_thread():
            rewrite(source, out, edit, changed.__contains__, threads=threads)


def bytes_needed(pair: Pair, moved_LF: np.ndarray, doing: Operation, out: Path) -> int:
    """Bytes that `write` adds to the disk of `out`: the touched shards, or all on another disk."""
    changed = places(pair, moved_LF, down_only=doing.down_only)
    disk = os.stat(lineage.existing_parent(out)).st_dev
    source = pair.recipient
    total = 0
    for shard, names in source.shards.items():
        file = (source.path / shard).resolve()
        elsewhere = file.stat().st_dev != disk
        if elsewhere or any(name in changed for name in names):
            total += file.stat().st_size
    return total


def model_card(
    title: str,
    rest_of: str,
    lines: list[str],
    parents: dict[str, Checkpoint],
    digests: dict[str, str],
) -> str:
    """A README.md naming the parents by role; `rest_of` is the one that all else comes from."""
    rows = [(role, parent.name, f"`{digests[role]}`") for role, parent in parents.items()]
    sections = [
        "FFN neurons of one checkpoint in another.",
        markdown_table(("", "parent", "digest"), rows),
        f"Everything but the FFN units below is the {rest_of}'s, byte for byte.",
        fenced("\n".join(lines)),
    ]
    return card(title, sections, parents=parents.values(), tags=("surgeon", "neuron-transplant"))
