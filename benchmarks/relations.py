"""What the figures of `merge-sweep`'s warnings are for pairs whose relation is known.

    python -m benchmarks.relations [CHECKPOINT]

The checkpoint (by default the built-in one) is compared with itself after its matrices were
shuffled, after 2 % of its weights were moved, and after a random LoRA of rank 8 was added.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from surgeon.checkpoint import SINGLE, Checkpoint, resolve
from surgeon.merge.relation import Relation, relation

Change = Callable[[Tensor, torch.Generator], Tensor]


def shuffled(weight: Tensor, random: torch.Generator) -> Tensor:
    """The same numbers in another order."""
    order = torch.randperm(weight.numel(), generator=random)
    return weight.flatten()[order].view_as(weight)


def moved(weight: Tensor, random: torch.Generator) -> Tensor:
    """2 % of the weights by 2 % of their size."""
    chosen = torch.rand(weight.shape, generator=random) < 0.02
    return torch.where(chosen, (weight.float() * 1.02 + 1e-4).to(weight.dtype), weight)


def tuned(weight: Tensor, random: torch.Generator) -> Tensor:
    """With a change of rank 8 and 2 % of the weights' norm."""
    a = torch.randn(weight.shape[0], 8, generator=random)
    change = a @ torch.randn(8, weight.shape[1], generator=random)
    size = 0.02 * weight.float().norm() / change.norm()
    return (weight.float() + size * change).to(weight.dtype)


def changed(source: Checkpoint, out: Path, change: Change) -> Checkpoint:
    """A copy whose matrices, but the embedding's, are changed."""
    shutil.copytree(source.path, out)
    random = torch.Generator().manual_seed(0)
    tensors = {
        name: change(tensor, random).contiguous()
        if tensor.dim() == 2 and "embed" not in name
        else tensor
        for name, tensor in load_file(source.path / SINGLE).items()
    }
    save_file(tensors, out / SINGLE, metadata={"format": "pt"})
    return Checkpoint.open(out)


def row(name: str, found: Relation) -> str:
    """A line of the table."""
    cosines = " | ".join(f"{found.cosine[kind]:.4f}" for kind in ("FFN", "attention"))
    return f"| {name} | {cosines} | {found.equal_share:.1%} |"


def main() -> None:
    """Print the table."""
    source = resolve(sys.argv[1] if len(sys.argv) > 1 else "builtin:instruct")
    print("| pair | FFN cosine | attention cosine | equal weights |\n|---|---|---|---|")
    pair = resolve("builtin:instruct"), resolve("builtin:thinking")
    print(row("the built-in endpoints", relation(*pair)))
    with tempfile.TemporaryDirectory() as place:
        for change in (shuffled, moved, tuned):
            other = changed(source, Path(place) / change.__name__, change)
            print(row(f"{source.name}, {change.__name__}", relation(source, other)))


if __name__ == "__main__":
    main()
