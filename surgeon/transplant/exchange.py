"""The streaming pass that exchanges units, and the files beside the new weights."""

# Shapes: L layers, F units per layer.

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from surgeon import lineage
from surgeon.checkpoint import (
    Checkpoint,
    card,
    fenced,
    map_tensor,
    markdown_table,
    rewrite,
)
from surgeon.progress import bar
from surgeon.threads import one_thread
from surgeon.transplant.attentions import attention_of
from surgeon.transplant.difference import Difference
from surgeon.transplant.pair import Pair, aligned_donor, places
from surgeon.transplant.surgeries import Surgery, operate

WRITERS = 2
"""Shards written at a time: copying is mostly waiting, exchanging is mostly arithmetic."""


def write(
    pair: Pair,
    moved_LF: np.ndarray,
    surgery: Surgery,
    out: Path,
    *,
    side: int = 0,
    difference: Difference | None = None,
    attention: bool = False,
) -> None:
    """Write the new recipient (side 0) or the new donor (side 1, of an exchanged pair) into `out`.

    With `attention` that of the layers with units that move takes part, each row of its tensors as
    a unit. Surgeries see recipient and donor as the user named them on either side.
    """
    changed = places(pair, moved_LF, surgery.roles)
    attending = set(attention_of(pair.recipient, moved_LF)) if attention else set()
    touched = changed.keys() | attending
    with bar(f"write {out.name.removesuffix('.partial')}", len(touched)) as advance:

        def attend(name: str, old: Tensor) -> None:
            info = pair.donor.tensors[name]
            other = map_tensor(pair.donor.path / info.shard, info).to(old.dtype)
            both = (old, other) if side == 0 else (other, old)
            operate(surgery, *both, torch.ones(len(old), dtype=torch.bool), 0, side)

        def edit(name: str, tensor: Tensor) -> Tensor:
            if name in attending:
                attend(name, tensor)
            for index, slab in changed.get(name, ()):
                site = pair.recipient_sites[index]
                old = slab.view(tensor, site.n_units)
                mask_F = torch.from_numpy(moved_LF[site.layer, site.span])
                other = aligned_donor(pair, index, slab.role, old.dtype) if surgery.donor else old
                if difference is not None and surgery.donor:
                    difference.add(index, slab, old, other)
                both = (old, other) if side == 0 else (other, old)
                operate(surgery, *both, mask_F, slab.canonical_axis, side)
            advance(1)
            return tensor

        source = pair.recipient
        tensor = max((source.tensors[name].nbytes for name in touched), default=0)
        shard = max((source.path / name).stat().st_size for name in source.shards)
        # Each writer holds a tensor of both sides; together no more than the largest shards.
        threads = max(1, min(WRITERS, shard // max(1, tensor)))
        with one_thread():
            rewrite(source, out, edit, touched.__contains__, threads=threads)


def bytes_needed(
    pair: Pair, moved_LF: np.ndarray, surgery: Surgery, out: Path, *, attention: bool = False
) -> int:
    """Bytes that `write` adds to the disk of `out`: the touched shards, or all on another disk."""
    changed = set(places(pair, moved_LF, surgery.roles))
    if attention:
        changed.update(attention_of(pair.recipient, moved_LF))
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
        f"Everything but what is listed below is the {rest_of}'s, byte for byte.",
        fenced("\n".join(lines)),
    ]
    return card(title, sections, parents=parents.values(), tags=("surgeon", "neuron-transplant"))
