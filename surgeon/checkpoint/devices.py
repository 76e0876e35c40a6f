"""Where a model runs: one device, or several that share its layers.

cuda:0                      one
cuda:0+cuda:1               a model larger than one GPU: layers in a row, by accelerate's map
cuda:0=60GB+cpu             so much of one, what is left waits in the host's memory
cpu=8GB+disk                what is left is read from the checkpoint's files in every pass
"""

import os
import re
from typing import TYPE_CHECKING, Any

from surgeon.checkpoint.dtypes import LIVE_DTYPES, torch_dtype
from surgeon.errors import BadInput

if TYPE_CHECKING:
    import torch

SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)B?", re.IGNORECASE)
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
ROOM = 0.75
"""Share of a device's free memory that weights take where no size is given: the rest is for keys,
values and activations."""


def placement(
    device: str, dtype: str, *, several: bool = False
) -> "tuple[str, torch.dtype | None]":
    """The device and dtype to run in; `auto` is an accelerator if there is one, and the dtype on
    disk (None). With `several` devices may share a model. Raises `BadInput` for a device that is
    not there or a dtype that has no name."""
    if device == "auto":
        device = next(kind for kind in ("cuda", "mps", "cpu") if is_present(kind))
    parts = device.split("+")
    if (len(parts) > 1 or "=" in device) and not several:
        raise BadInput(
            f"device is {device!r}, expected one device: models are spread over several by rank, "
            "evaluate and trigger label only."
        )
    for part in parts:
        name, _, size = part.partition("=")
        if name.partition(":")[0] == "disk" and len(parts) > 1 and name == "disk" and not size:
            continue
        if not is_present(name):
            raise BadInput(f"device is {device!r}, expected auto, cpu, or an accelerator present.")
        if size and not SIZE.fullmatch(size):
            raise BadInput(f"device is {device!r}, expected a size such as 60GB behind {name}=.")
    if dtype != "auto" and dtype not in LIVE_DTYPES:
        raise BadInput(f"dtype is {dtype!r}, expected auto, {', '.join(LIVE_DTYPES)}.")
    return device, None if dtype == "auto" else torch_dtype(dtype)


def is_present(device: str) -> bool:
    """Whether this machine has a device of that kind (and number)."""
    import torch

    kind, _, number = device.partition(":")
    if kind == "cpu":
        return not number
    if kind == "mps":
        return not number and torch.backends.mps.is_available()
    if kind != "cuda" or not torch.cuda.is_available():
        return False
    return not number or (number.isdecimal() and int(number) < torch.cuda.device_count())


def is_spread(device: str) -> bool:
    """Whether several devices share a model."""
    return "+" in device or "=" in device


def shares(device: str) -> dict[int | str, int]:
    """Bytes of weights that each device may hold, as accelerate calls them; the disk has no end."""
    found: dict[int | str, int] = {}
    for part in device.split("+"):
        name, _, size = part.partition("=")
        kind, _, number = name.partition(":")
        if name == "disk":
            continue
        key = int(number or 0) if kind == "cuda" else kind
        match = SIZE.fullmatch(size)
        if match is not None:
            found[key] = int(float(match[1]) * UNITS[match[2].upper()])
        else:
            found[key] = int(ROOM * _free_bytes(key))
    return found


def _free_bytes(key: int | str) -> int:
    import torch

    if isinstance(key, int):
        return torch.cuda.mem_get_info(key)[0]
    if key == "mps":
        return torch.mps.recommended_max_memory()
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def require_room(model: Any, device: str) -> None:
    """Raise `BadInput` where a model was spread to the disk, and that wasn't asked for."""
    used = set(map(str, model.hf_device_map.values()))
    if "disk" in used and "disk" not in device.split("+"):
        raise BadInput(
            f"the model has no room on {device}. Name more devices, or add +cpu or +disk: what is "
            "left waits there, and every pass takes longer."
        )
