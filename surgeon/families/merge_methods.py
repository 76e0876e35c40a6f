"""Merge methods that are computed here, bit-equal to mergekit's where it has them.

Adding one is a function and a row of `METHODS`. From outside, `module:function` names a function

    merge(a_N, b_N, t) -> Tensor        or        merge(a_N, b_N, t, cosine) -> Tensor

of a piece of one tensor of each endpoint, flattened, in float32 (float64 for float64 weights), and
of t in (0, 1), 0 being `a`. It works element by element: pieces are cut where it suits the cache.
`cosine` is that of the two whole tensors.

Shape legend: N elements of a piece of one tensor.
"""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from surgeon import named
from surgeon.errors import BadInput
from surgeon.families.mixing import Recipe, work_dtype

COLLINEAR = 0.9995
"""Cosines beyond this, in absolute value, are mixed linearly (mergekit's `dot_threshold`)."""


class Mix(NamedTuple):
    """One candidate's recipe."""

    method: str
    """A row of `METHODS`, or `module:function`."""
    t: float
    """0 is the first endpoint, 1 the second."""


MergeConfig = dict[str, Any]
"""A mergekit config, as YAML reads it."""

# --- how mergekit's config says it ----------------------------------------------------------------


def one_t(t: float) -> MergeConfig:
    """The config, method and dtype left out, of a merge with one number for `t`."""
    both = [{"model": "a"}, {"model": "b"}]
    return {"base_model": "a", "models": both, "parameters": {"t": t}}


def t_of_parameters(merge: MergeConfig) -> object:
    """The `t` of such a config, None where it has none."""
    return _part(merge.get("parameters"), "t")


def weights_of_both(t: float) -> MergeConfig:
    """The config of a merge in which each model has a weight, together 1."""
    pairs = (("a", 1 - t), ("b", t))
    return {"models": [{"model": name, "parameters": {"weight": w}} for name, w in pairs]}


def weight_of_last(merge: MergeConfig) -> object:
    """The weight of the last model in such a config, None where it has none."""
    models = merge.get("models")
    last = models[-1] if isinstance(models, list) and models else None
    return _part(_part(last, "parameters"), "weight")


def _part(value: object, name: str) -> object:
    """What an object of a config holds by that name; None where it is no object."""
    return value.get(name) if isinstance(value, dict) else None


# --- rows -----------------------------------------------------------------------------------------


class MergeMethod(NamedTuple):
    """A merge of two tensors, element by element."""

    coefficients: Callable[[float, float, torch.dtype], tuple[float, ...]]
    """(t, cosine, dtype of the weights) -> the numbers `mix` needs for one tensor; the cosine is
    nan for a method that doesn't ask for it."""
    mix: Callable[[Tensor, Tensor, tuple[float, ...], Tensor, Tensor], object]
    """(a_N, b_N, coefficients, out_N, spare_N): writes the merge into out_N; spare_N is free."""
    needs_cosine: bool = False
    config: Callable[[float], MergeConfig] = one_t
    """t -> mergekit's config, method and dtype left out."""
    t_of: Callable[[MergeConfig], object] = t_of_parameters
    """A config -> what stands where `config` puts t."""


def slerp(t: float, cosine: float, dtype: torch.dtype) -> tuple[float, ...]:
    """The two weights of a spherical interpolation; (anti)parallel tensors are mixed linearly."""
    work = work_dtype(dtype)
    # Tensors of mergekit's shape and dtype: Python floats would differ in the last bit.
    t_11, dot = torch.tensor([[t]], dtype=work), torch.tensor([[cosine]], dtype=work)
    linear = dot.abs() > COLLINEAR
    theta = torch.acos(torch.where(linear, 0, dot))
    sine = torch.sin(theta)
    first = torch.where(linear, 1 - t_11, torch.sin((1 - t_11) * theta) / sine)
    second = torch.where(linear, t_11, torch.sin(t_11 * theta) / sine)
    return first.item(), second.item()


def weigh(
    a_N: Tensor, b_N: Tensor, weights: tuple[float, ...], out_N: Tensor, spare_N: Tensor
) -> None:
    """`first * a + second * b`, each product rounded."""
    torch.mul(a_N, weights[0], out=out_N)
    torch.mul(b_N, weights[1], out=spare_N)
    out_N.add_(spare_N)


def linear(t: float, cosine: float, dtype: torch.dtype) -> tuple[float, ...]:
    """The two weights and their sum, which rounding may take away from 1."""
    weight_12 = torch.tensor([[1 - t, t]], dtype=work_dtype(dtype))
    return *weight_12[0].tolist(), weight_12.sum(dim=1).item()


def average(
    a_N: Tensor, b_N: Tensor, weights: tuple[float, ...], out_N: Tensor, spare_N: Tensor
) -> None:
    """`(first * a + second * b) / sum`."""
    # addcmul fuses multiply and add on most CPUs; separate operations differ in the last bit. The
    # coefficient is a tensor because a Python number takes another code path.
    first, second = (torch.tensor([w], dtype=out_N.dtype) for w in weights[:2])
    out_N.zero_().addcmul_(a_N, first).addcmul_(b_N, second)
    if weights[2] != 1.0:
        out_N.div_(torch.tensor([weights[2]], dtype=out_N.dtype))


METHODS = {
    "slerp": MergeMethod(slerp, weigh, needs_cosine=True),
    "linear": MergeMethod(linear, average, config=weights_of_both, t_of=weight_of_last),
}


def falls_back(cosine: float) -> bool:
    """True where SLERP mixes linearly because the two tensors are (anti)parallel."""
    return abs(cosine) > float(torch.tensor(COLLINEAR))


# --- by name --------------------------------------------------------------------------------------


def method_of(name: str, *, typed: bool = False) -> MergeMethod | None:
    """The method of that name; None for one that only mergekit has.

    `typed` says that the user named it for this run. A name that was read in a family's file runs
    no code of the current directory, which may be where the family was downloaded to. Raises
    `BadInput` where `module:function` can't be imported, or breaks the rules of a merge.
    """
    if name in METHODS:
        return METHODS[name]
    if not named.MODULE_FUNCTION.fullmatch(name):
        return None
    return _foreign(name, named.function(name, "method", here=typed))


def require_method(name: str) -> None:
    """Raise `BadInput` for a method that isn't computed here; `name` is what the user typed."""
    if method_of(name, typed=True) is None:
        raise BadInput(
            f"found method = {name}, expected one of: {', '.join(METHODS)}; or module:function. "
            "Other methods of mergekit need a merge config: --config merges/NAME.yaml"
        )


def short_name(method: str) -> str:
    """A method's name in a candidate's: the function of `module:function`."""
    return method.rpartition(":")[2]


@cache
def _foreign(name: str, function: Callable[..., Tensor]) -> MergeMethod:
    """A function from outside as a method, after a trial on a small example."""
    needs_cosine = "cosine" in inspect.signature(function).parameters

    def coefficients(t: float, cosine: float, dtype: torch.dtype) -> tuple[float, ...]:
        return (t, cosine) if needs_cosine else (t,)

    def mix(a_N: Tensor, b_N: Tensor, numbers: tuple[float, ...], out_N: Tensor, _: Tensor) -> None:
        out_N.copy_(function(a_N, b_N, *numbers))

    _try(name, function, coefficients(0.25, 0.5, torch.float32))
    return MergeMethod(coefficients, mix, needs_cosine)


def _try(name: str, function: Callable[..., Any], numbers: tuple[float, ...]) -> None:
    """Raise `BadInput` where a function doesn't merge element by element."""
    a_N, b_N = torch.linspace(-1, 1, 8), torch.tensor([3.0, -1, 0.5, 0, -2, 1, 2, -0.5])
    before = a_N.clone(), b_N.clone()
    try:
        whole_N = function(a_N, b_N, *numbers)
    except TypeError as error:
        raise BadInput(f"{name} can't be called with two tensors and {numbers}: {error}") from error
    if not isinstance(whole_N, Tensor) or (whole_N.shape, whole_N.dtype) != (a_N.shape, a_N.dtype):
        result = getattr(whole_N, "shape", type(whole_N).__name__)
        raise BadInput(
            f"{name}: found a result of {result}, expected a tensor of its inputs' shape and dtype."
        )
    if not (torch.equal(a_N, before[0]) and torch.equal(b_N, before[1])):
        raise BadInput(f"{name} changes its inputs, expected it to return a new tensor.")
    parts = [function(a_N[s], b_N[s], *numbers) for s in (slice(0, 3), slice(3, 8))]
    if not torch.equal(torch.cat(parts), whole_N):
        raise BadInput(
            f"{name} merges a part of a tensor otherwise than the whole, expected a function that "
            "works element by element. It may ask for the whole tensors' `cosine`."
        )


def recipe(mix: Mix, cosine: float | None, dtype: torch.dtype) -> Recipe:
    """How one tensor of weights of `dtype` is mixed; `cosine` is that of its merge group."""
    method = method_of(mix.method)
    if method is None or (method.needs_cosine and cosine is None):
        raise ValueError(f"{mix.method} has no fast path, or no cosine for it")
    numbers = method.coefficients(mix.t, float("nan") if cosine is None else cosine, dtype)
    return Recipe(method.mix, numbers)
