"""The angles between two checkpoints, as mergekit's SLERP measures them.

mergekit treats a mixture of experts in the layout the live model has: all experts of a layer are
one tensor and so have one angle. A `MergeGroup` is what has one angle: usually one tensor on disk,
for experts stored one by one the whole stack.

Shape legend: N elements of one tensor, flattened.
"""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from surgeon.checkpoint import FLOATS, Checkpoint, torch_dtype
from surgeon.families.description import Family
from surgeon.families.merge_methods import method_of
from surgeon.families.mixing import work_dtype
from surgeon.progress import bar

ANGLE_CHUNK = 1 << 20
"""Elements: mergekit sums the dot product in chunks of this size; the last bit depends on it."""
SERIAL = 1 << 15
"""Elements up to which torch runs an elementwise operation on the calling thread alone."""
UNFUSED_BY_MERGEKIT = ("afmoe",)
"""Mixtures of experts that mergekit 0.1.5 merges expert by expert."""


class MergeGroup(NamedTuple):
    """Tensors on disk that mergekit merges as one, with one SLERP angle."""

    key: str
    """The name mergekit gives the merged tensor: on disk, or in the live model's fused layout."""
    names: tuple[str, ...]


def merge_groups(checkpoint: Checkpoint) -> list[MergeGroup]:
    """The merge groups of a checkpoint, in the order of its tensors."""
    renamings, converters = _conversions(checkpoint.model_type)
    if not converters:
        return [MergeGroup(name, (name,)) for name in checkpoint.tensors]
    from transformers.core_model_loading import dot_natural_key, rename_source_key

    members: dict[str, list[str]] = {}
    for name in checkpoint.tensors:
        key, pattern = rename_source_key(name, renamings, converters)
        fused = pattern is not None and key not in checkpoint.tensors
        members.setdefault(key if fused else name, []).append(name)
    return [
        MergeGroup(key, tuple(sorted(names, key=dot_natural_key)))
        if len(names) > 1
        else MergeGroup(names[0], (names[0],))
        for key, names in members.items()
    ]


def _conversions(model_type: str) -> tuple[list[Any], list[Any]]:
    """Transformers' renamings and its many-to-one converters for a model type."""
    if model_type in UNFUSED_BY_MERGEKIT:
        return [], []
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    transforms = get_checkpoint_conversion_mapping(model_type) or []
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    # A converter of one fixed name into one is no fusion: mergekit takes the tensor as it is.
    many = [c for c in converters if len(c.source_patterns) > 1 or "*" in c.source_patterns[0]]
    return [t for t in transforms if isinstance(t, WeightRenaming)], many


def fused(group: MergeGroup, tensors: dict[str, Tensor], model_type: str) -> Tensor:
    """The group as the one tensor mergekit sees, experts stacked in the live model's layout."""
    if len(group.names) == 1:
        return tensors[group.names[0]]
    from transformers.core_model_loading import rename_source_key

    renamings, converters = _conversions(model_type)
    owner: Any = None
    for name in group.names:
        key, pattern = rename_source_key(name, renamings, converters)
        if owner is None:
            owner = copy.deepcopy(next(c for c in converters if pattern in c.source_patterns))
        owner.add_tensor(key, name, pattern, tensors[name])
    return owner.convert(group.key)[group.key]


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine between two tensors as mergekit's SLERP computes it, exact as a Python float.

    The last bit depends on how torch splits a sum, so on `torch.get_num_threads()`: compute it
    once per family and keep it.
    """
    work = work_dtype(a.dtype)
    a_N, b_N = a.reshape(-1), b.reshape(-1)
    if a_N.numel() == 0:
        return 1.0
    x_1N, y_1N = (torch.empty(1, min(ANGLE_CHUNK, a_N.numel()), dtype=work) for _ in range(2))

    def spans() -> Iterator[tuple[slice, Tensor, Tensor]]:
        for start in range(0, a_N.numel(), ANGLE_CHUNK):
            n = min(ANGLE_CHUNK, a_N.numel() - start)
            yield slice(start, start + n), x_1N[:, :n], y_1N[:, :n]

    # Two readings, as mergekit's: the norms first, then the product of normalised elements. A
    # product divided afterwards by both norms would round otherwise.
    norms: list[tuple[Tensor, Tensor]] = []
    for span, x, y in spans():
        for wide, source in ((x, a_N[span]), (y, b_N[span])):
            for block in serial_blocks(wide.shape[1]):
                wide[0, block] = source[block]
        first, second = (torch.linalg.vector_norm(v, dim=1, keepdim=True) for v in (x, y))
        norms.append((first, second))
    norm_a, norm_b = (
        torch.linalg.vector_norm(torch.stack(parts), dim=0) for parts in zip(*norms, strict=True)
    )
    norm_a = torch.where(norm_a > 1e-8, norm_a, 1)[0]
    norm_b = torch.where(norm_b > 1e-8, norm_b, 1)[0]
    dots = []
    for span, x, y in spans():
        first, second = a_N[span], b_N[span]
        for block in serial_blocks(x.shape[1]):
            x[0, block], y[0, block] = first[block], second[block]
            x[0, block].div_(norm_a).mul_(y[0, block].div_(norm_b))
        # This sum is split among threads, and the split decides the last bit.
        dots.append(x.sum(dim=1, keepdim=True))
    return torch.stack(dots).sum(dim=0).clamp(-1, 1).item()


def serial_blocks(n: int) -> Iterator[slice]:
    """Slices too small for torch to split among threads: waiting for a thread costs more."""
    for start in range(0, n, SERIAL):
        yield slice(start, min(n, start + SERIAL))


def read_as(checkpoint: Checkpoint, names: tuple[str, ...], dtype: str | None) -> dict[str, Tensor]:
    """Tensors of a checkpoint, floats cast to `dtype`; without a cast they are mapped, not read."""
    tensors = checkpoint.read_many(list(names))
    if dtype is None:
        return tensors
    cast = torch_dtype(dtype)
    return {k: v.to(cast) if v.is_floating_point() else v for k, v in tensors.items()}


def cosines_between(a: Checkpoint, b: Checkpoint, dtype: str | None) -> dict[str, float]:
    """Cosine of every floating-point merge group of two checkpoints, rounded to `dtype` first."""
    cosines = {}
    with bar("cosines", len(a.tensors)) as advance:
        for group in merge_groups(a):
            if a.tensors[group.names[0]].dtype in FLOATS:
                pair = (fused(group, read_as(c, group.names, dtype), a.model_type) for c in (a, b))
                cosines[group.key] = cosine(*pair)
            advance(len(group.names))
    return cosines


def needs_cosines(family: Family) -> bool:
    """Whether a method of the family mixes by the angle between two tensors."""
    rows = [method_of(name) for name in family.methods]
    return any(row is not None and row.needs_cosine for row in rows)


def with_cosines(family: Family) -> Family:
    """The family with the cosines its methods need, computed where none are stored."""
    if family.cosines or not needs_cosines(family):
        return family
    ends = family.endpoints
    return replace(family, cosines=cosines_between(ends[0], ends[-1], family.dtype))
