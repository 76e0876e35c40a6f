"""The dtypes of weights: safetensors' names, torch's names, and bytes."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import nn


class Dtype(NamedTuple):
    """One kind of number."""

    torch: str
    """torch's name, without `torch.`."""
    nbytes: int
    arithmetic: bool = False
    """Whether weights of this dtype are computed with: mixed, moved unit by unit."""


DTYPES = {
    "F64": Dtype("float64", 8, arithmetic=True),
    "F32": Dtype("float32", 4, arithmetic=True),
    "F16": Dtype("float16", 2, arithmetic=True),
    "BF16": Dtype("bfloat16", 2, arithmetic=True),
    "F8_E4M3": Dtype("float8_e4m3fn", 1),
    "F8_E5M2": Dtype("float8_e5m2", 1),
    "I64": Dtype("int64", 8),
    "I32": Dtype("int32", 4),
    "I16": Dtype("int16", 2),
    "I8": Dtype("int8", 1),
    "U64": Dtype("uint64", 8),
    "U32": Dtype("uint32", 4),
    "U16": Dtype("uint16", 2),
    "U8": Dtype("uint8", 1),
    "BOOL": Dtype("bool", 1),
}
"""By safetensors' names."""
FLOATS = tuple(name for name, dtype in DTYPES.items() if dtype.arithmetic)
"""safetensors' names of the dtypes that can be computed with."""
FLOAT_NAMES = tuple(DTYPES[name].torch for name in FLOATS)
"""torch's names of the same."""
LIVE_DTYPES = ("float32", "bfloat16", "float16")
"""Dtypes that a model can run in."""


def torch_dtype(name: str) -> "torch.dtype":
    """torch's dtype of safetensors' or of torch's own name."""
    import torch

    return getattr(torch, DTYPES[name].torch if name in DTYPES else name)


def disk_name(name: str) -> str:
    """safetensors' name of torch's name."""
    return next(disk for disk, dtype in DTYPES.items() if dtype.torch == name)


def cast_weights(model: "nn.Module", dtype: "torch.dtype") -> None:
    """Bring a model's weights to a dtype, and not its buffers, which are float32 whatever the
    weights are: in bfloat16 rotary frequencies are off by radians at a few thousand tokens, and
    biases of routers choose other experts."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
