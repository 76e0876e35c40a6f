"""Safetensors files: headers checked without reading the weights, one tensor at a time."""

import json
import mmap
import struct
from io import FileIO
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon import lineage
from surgeon.checkpoint.dtypes import DTYPES, torch_dtype
from surgeon.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

HEADER_LIMIT = 100 << 20
"""Bytes: the largest header the safetensors format allows."""


class TensorInfo(NamedTuple):
    """What a safetensors header says of one tensor."""

    shard: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    start: int
    """Where its bytes begin in the file."""


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file; an empty one when there is no file."""
    return lineage.read_object(file) if file.is_file() else {}


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Tensor name -> info from a safetensors file, checked against the file's real size."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= min(HEADER_LIMIT, size):
            raise BadInput(f"{file} is not a safetensors file (its header is unreadable).")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            infos, end = {}, 0
            for name, info in header.items():
                begin, stop = info["data_offsets"]
                shape, dtype = tuple(info["shape"]), info["dtype"]
                # Python multiplies a list by a number, too: gigabytes of nothing.
                if not all(type(n) is int and n >= 0 for n in (*shape, begin, stop)):
                    raise ValueError(f"{name} has sizes that are no whole numbers")
                known = DTYPES.get(dtype)
                if known is not None and stop - begin != prod(shape) * known.nbytes:
                    raise ValueError(f"{name} has {stop - begin} bytes for {dtype}{list(shape)}")
                infos[name] = TensorInfo(file.name, dtype, shape, stop - begin, 8 + length + begin)
                end = max(end, stop)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BadInput(f"{file} has a corrupt safetensors header ({error}).") from error
    if 8 + length + end != size:
        raise BadInput(
            f"{file} is truncated or corrupt: its header describes {8 + length + end} bytes, the "
            f"file has {size}. Fetch or copy it again."
        )
    _require_loadable(file)
    return infos


def _require_loadable(file: Path) -> None:
    """Raise `BadInput` where the library that loads the weights refuses the header: tensors that
    overlap, gaps between them, dtypes it doesn't know."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
    except SafetensorError as error:
        raise BadInput(
            f"{file} has a corrupt safetensors header ({error}). Fetch or copy it again."
        ) from error


def same_bytes(files: list[Path], infos: list[TensorInfo], piece: int = 1 << 24) -> bool:
    """Whether two tensors, each in its file, have the same bytes; a piece in memory at a time."""
    with open(files[0], "rb") as first, open(files[1], "rb") as second:
        first.seek(infos[0].start)
        second.seek(infos[1].start)
        return all(
            first.read(min(piece, infos[0].nbytes - at))
            == second.read(min(piece, infos[0].nbytes - at))
            for at in range(0, infos[0].nbytes, piece)
        )


def read_tensor(file: FileIO, info: TensorInfo, scratch: "Tensor | None" = None) -> "Tensor":
    """One tensor's bytes from an open shard, in memory of its own (not a mapping of the file).

    That memory is `scratch` (uint8) where there is one.
    """
    import torch

    data = torch.empty(info.nbytes, dtype=torch.uint8) if scratch is None else scratch
    data = data[: info.nbytes]
    file.seek(info.start)
    rest = data.numpy().data
    while rest:
        rest = rest[some(file.readinto(rest), file) :]  # the system reads at most 2 GB at a time
    return data.view(torch_dtype(info.dtype)).reshape(info.shape)


def map_tensor(path: Path, info: TensorInfo, *, ahead: bool = True) -> "Tensor":
    """One tensor of a shard as a private mapping: what is not looked at need not be read.

    `ahead` asks the system to fetch all of it meanwhile. A mapping is good only as long as no one
    writes to the file, so it is not for keeping.
    """
    import torch

    dtype = torch_dtype(info.dtype)
    if not info.nbytes:
        return torch.empty(info.shape, dtype=dtype)
    begin = info.start % mmap.ALLOCATIONGRANULARITY
    with open(path, "rb") as file:
        mapped = mmap.mmap(
            file.fileno(), begin + info.nbytes, access=mmap.ACCESS_COPY, offset=info.start - begin
        )
    if ahead:
        mapped.madvise(mmap.MADV_WILLNEED)
    data = torch.frombuffer(mapped, dtype=torch.uint8, offset=begin, count=info.nbytes)
    return data.view(dtype).reshape(info.shape)


def some(count: int | None, file: FileIO) -> int:
    """A count of bytes read that is not zero; raises `BadInput` where a file ended early."""
    if not count:
        raise BadInput(f"{file.name} became shorter while it was read. Fetch or copy it again.")
    return count
