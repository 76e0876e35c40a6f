"""Whether a run of `make family` made the shipped checkpoints again: `python -m
benchmarks.family.compare runs/family-0/data [--seed 1]`.

Weights are compared to the bit. Where they differ, the two cards say how far the models are apart.
"""

import argparse
import re
from pathlib import Path
from typing import NamedTuple

from surgeon import builtin
from surgeon.errors import BadInput

_ROW = re.compile(r"^\| (.+?) \| (.+?) \|$", re.MULTILINE)


class Difference(NamedTuple):
    """How a checkpoint differs from the shipped one."""

    name: str
    changed: int
    """Tensors with a different bit."""
    tensors: int
    largest: float
    """Largest absolute difference of two weights."""
    rows: dict[str, tuple[str, str]]
    """Row of the card -> shipped and made, where they differ."""


def compared(made: Path, shipped: Path) -> Difference:
    """How a checkpoint differs from the shipped one; raises BadInput where it isn't one of the same
    shape."""
    import torch
    from safetensors.torch import load_file

    for directory in (made, shipped):
        for file in ("model.safetensors", "README.md"):
            if not (directory / file).exists():
                raise BadInput(
                    f"found no {file} in {directory}, expected a checkpoint with its card. Make it "
                    "with: make family"
                )
    ours = load_file(shipped / "model.safetensors")
    theirs = load_file(made / "model.safetensors")
    shapes = [{key: tuple(w.shape) for key, w in each.items()} for each in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise BadInput(f"found other tensors in {made} than in {shipped}, expected the same shapes")
    apart = {key: (ours[key] - theirs[key]).abs().max().item() for key in ours}
    changed = sum(not torch.equal(ours[key], theirs[key]) for key in ours)
    cards = [dict(_ROW.findall((d / "README.md").read_text())) for d in (shipped, made)]
    rows = {
        key: (cards[0].get(key, ""), cards[1].get(key, ""))
        for key in {**cards[0], **cards[1]}
        if cards[0].get(key) != cards[1].get(key)
    }
    return Difference(shipped.name, changed, len(ours), max(apart.values()), rows)


def lines(found: Difference) -> list[str]:
    """What is printed of a checkpoint."""
    if not found.changed:
        said = [f"{found.name}: {found.tensors} tensors equal to the bit"]
    else:
        said = [
            f"{found.name}: {found.changed} of {found.tensors} tensors differ, by at most "
            f"{found.largest:.2g}"
        ]
    if not found.rows:
        return [*said, "  the cards say the same"]
    return [*said, *(f"  {key}: {was} -> {now}" for key, (was, now) in found.rows.items())]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.family.compare")
    parser.add_argument("data", type=Path, help="what a run wrote: runs/family-0/data")
    parser.add_argument("--seed", type=int, choices=(0, 1), default=0)
    args = parser.parse_args()
    prefix = "second-" if args.seed else ""
    names = [n.removeprefix("second-") for n in builtin.SECOND] if prefix else builtin.CHECKPOINTS
    try:
        for name in names:
            print("\n".join(lines(compared(args.data / name, builtin.path(prefix + name)))))
    except BadInput as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
