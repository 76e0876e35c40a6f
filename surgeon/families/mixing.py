"""SLERP and linear interpolation of two checkpoints, bit-equal to mergekit's.

Both are applied tensor by tensor on the CPU in float32 (float64 for float64 weights) and rounded
once. mergekit treats a mixture of experts in the layout the live model has: all experts of a layer
are one tensor and so have one SLERP angle. A `Unit` is what has one angle: usually one tensor on
disk, for experts stored one by one the whole stack.

Shape legend: N elements of one tensor, flattened.
"""

import copy
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from surgeon.checkpoint import Checkpoint
from surgeon.errors import BadInput

METHODS = ("slerp", "linear")
ANGLE_CHUNK = 1 << 20
"""Elements: mergekit sums the dot product in chunks of this size; the last bit depends on it."""
SERIAL = 1 << 15
"""Elements up to which torch runs an elementwise operation on the calling thread alone."""
MIX_CHUNK = 1 << 17
"""Elements mixed at a time: small enough that the float32 copies stay in a core's cache."""
COLLINEAR = 0.9995
"""Cosines beyond this, in absolute value, are mixed linearly (mergekit's `dot_threshold`)."""
UNFUSED_BY_MERGEKIT = ("afmoe",)
"""Mixtures of experts that mergekit 0.1.5 merges expert by expert."""


class Unit(NamedTuple):
    """Tensors on disk that mergekit merges as one, with one SLERP angle."""

    key: str
    """The name mergekit gives the merged tensor: on disk, or in the live model's fused layout."""
    names: tuple[str, ...]


class Mix(NamedTuple):
    """One candidate's recipe."""

    method: str
    t: float
    """0 is the first endpoint, 1 the second."""


class Coefficients(NamedTuple):
    """`first * a + second * b`, over `divisor` for linear mixes."""

    method: str
    first: float
    second: float
    divisor: float


def units(checkpoint: Checkpoint) -> list[Unit]:
    """The merge units of a checkpoint, in the order of its tensors."""
    renamings, converters = _conversions(checkpoint.model_type)
    if not converters:
        return [Unit(name, (name,)) for name in checkpoint.tensors]
    from transformers.core_model_loading import dot_natural_key, rename_source_key

    members: dict[str, list[str]] = {}
    for name in checkpoint.tensors:
        key, pattern = rename_source_key(name, renamings, converters)
        fused = pattern is not None and key not in checkpoint.tensors
        members.setdefault(key if fused else name, []).append(name)
    return [
        Unit(key, tuple(sorted(names, key=dot_natural_key)))
        if len(names) > 1
        else Unit(names[0], (names[0],))
        for key, names in members.items()
    ]


def _conversions(model_type: str) -> tuple[list[Any], list[Any]]:
    """Transformers' renamings and its many-to-one converters for a model type."""
    if model_type in UNFUSED_BY_MERGEKIT:
        return [], []
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    found = get_checkpoint_conversion_mapping(model_type) or []
    converters = [t for t in found if isinstance(t, WeightConverter)]
    # A converter of one fixed name into one is no fusion: mergekit takes the tensor as it is.
    many = [c for c in converters if len(c.source_patterns) > 1 or "*" in c.source_patterns[0]]
    return [t for t in found if isinstance(t, WeightRenaming)], many


def fused(unit: Unit, tensors: dict[str, Tensor], model_type: str) -> Tensor:
    """The unit as the one tensor mergekit sees, experts stacked in the live model's layout."""
    if len(unit.names) == 1:
        return tensors[unit.names[0]]
    from transformers.core_model_loading import rename_source_key

    renamings, converters = _conversions(model_type)
    owner: Any = None
    for name in unit.names:
        key, pattern = rename_source_key(name, renamings, converters)
        if owner is None:
            owner = copy.deepcopy(next(c for c in converters if pattern in c.source_patterns))
        owner.add_tensor(key, name, pattern, tensors[name])
    return owner.convert(unit.key)[unit.key]


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype the arithmetic is done in for weights of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


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
        dots.append(x.sum(dim=1, keepdim=True))
    return torch.stack(dots).sum(dim=0).clamp(-1, 1).item()


def serial_blocks(n: int) -> Iterator[slice]:
    """Slices too small for torch to split among threads: waiting for a thread costs more."""
    for start in range(0, n, SERIAL):
        yield slice(start, min(n, start + SERIAL))


def falls_back(cosine_: float) -> bool:
    """True where SLERP mixes linearly because the two tensors are (anti)parallel."""
    return abs(cosine_) > float(torch.tensor(COLLINEAR))


def coefficients(mix: Mix, cosine_: float | None, dtype: torch.dtype) -> Coefficients:
    """The two weights of a mix for tensors of `dtype`; SLERP needs the unit's cosine."""
    work = work_dtype(dtype)
    if mix.method == "linear":
        weights = torch.tensor([[1 - mix.t, mix.t]], dtype=work)
        first, second = weights[0].tolist()
        return Coefficients("linear", first, second, weights.sum(dim=1).item())
    if cosine_ is None:
        raise ValueError("slerp needs the cosine of the two tensors")
    t = torch.tensor([[mix.t]], dtype=work)
    dot = torch.tensor([[cosine_]], dtype=work)
    linear = dot.abs() > COLLINEAR
    theta = torch.acos(torch.where(linear, 0, dot))
    sine = torch.sin(theta)
    first = torch.where(linear, 1 - t, torch.sin((1 - t) * theta) / sine)
    second = torch.where(linear, t, torch.sin(t * theta) / sine)
    return Coefficients("slerp", first.item(), second.item(), 1.0)


class Scratch(threading.local):
    """Buffers of one thread for `mixed`, so that mixing allocates nothing."""

    def __init__(self) -> None:
        self.work: dict[torch.dtype, tuple[Tensor, ...]] = {}
        self.out: dict[torch.dtype, Tensor] = {}

    def floats(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        if dtype not in self.work:
            self.work[dtype] = tuple(torch.empty(MIX_CHUNK, dtype=dtype) for _ in range(4))
        return self.work[dtype]

    def rounded(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self.out:
            self.out[dtype] = torch.empty(MIX_CHUNK, dtype=dtype)
        return self.out[dtype]


def mixed(
    a_N: Tensor,
    b_N: Tensor,
    recipes: list[Coefficients],
    dtype: torch.dtype,
    scratch: Scratch,
) -> Iterator[Tensor]:
    """Yield the mix of one chunk (N <= MIX_CHUNK) for each recipe, in `dtype`, reading a, b once.

    The inputs are first rounded to `dtype`, as mergekit does on loading. The tensor yielded is a
    buffer that the next step overwrites.
    """
    n, work = a_N.numel(), work_dtype(dtype)
    x, y, p, q = (buffer[:n] for buffer in scratch.floats(work))
    out = scratch.rounded(dtype)[:n]
    for source, wide in ((a_N, x), (b_N, y)):
        wide.copy_(source if source.dtype == dtype else out.copy_(source))
    for recipe in recipes:
        if recipe.method == "linear":
            # addcmul fuses multiply and add on most CPUs; separate operations differ in the last
            # bit. The coefficient is a tensor because a Python number takes another code path.
            first, second = (torch.tensor([c], dtype=work) for c in (recipe.first, recipe.second))
            p.zero_().addcmul_(x, first).addcmul_(y, second)
            if recipe.divisor != 1.0:
                p.div_(torch.tensor([recipe.divisor], dtype=work))
        else:
            torch.mul(x, recipe.first, out=p)
            torch.mul(y, recipe.second, out=q)
            p.add_(q)
        yield out.copy_(p) if dtype != work else p


def require_method(method: str) -> None:
    """Raise `BadInput` for an interpolation that has no formula here."""
    if method not in METHODS:
        raise BadInput(
            f"method {method!r} is none of {', '.join(METHODS)}. Other mergekit methods need a "
            "merge config: --config merges/NAME.yaml"
        )


def chunks(n: int) -> Iterator[tuple[int, int]]:
    """Start and stop of each MIX_CHUNK of `n` elements."""
    for start in range(0, n, MIX_CHUNK):
        yield start, min(n, start + MIX_CHUNK)
