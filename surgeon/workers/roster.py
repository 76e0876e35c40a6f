"""Which workers the settings ask for."""

import importlib.util
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from surgeon.checkpoint import placement
from surgeon.errors import BadInput
from surgeon.settings.workforce import Workforce

if TYPE_CHECKING:
    import torch

RAY = re.compile(r"(?:(\d+)@)?(ray(?:://\S+)?)")


class Roster(NamedTuple):
    """The workers of a run, none started yet."""

    devices: tuple[str, ...]
    """One per process of this machine; empty for a cluster."""
    dtype: "torch.dtype | None"
    address: str | None = None
    """Of a Ray cluster: `auto`, or `ray://HOST:PORT`; None for processes of this machine."""
    most: int | None = None
    """At most so many actors; None: as many as the cluster has room for."""
    gpus: int = 1
    """GPUs of an actor, where the cluster has any."""
    device: str = "auto"
    """Of an actor."""


def roster(asked: Workforce, device: str = "auto", dtype: str = "auto") -> Roster | None:
    """The workers that the settings ask for; None where this process works alone.

    `device` and `dtype` are those of the machine's settings. Raises `BadInput` for workers or
    devices that can't be.
    """
    kind = placement(device, dtype, several=True)[1]
    found = RAY.fullmatch(asked.workers)
    names = [name for item in asked.devices for name in item.split(",")]
    if names:
        if device != "auto" or asked.workers not in ("1", "auto", str(len(names))):
            other = f"device {device}" if device != "auto" else f"workers {asked.workers}"
            raise BadInput(
                f"found --devices {','.join(names)} and --{other}, expected one of them: "
                "a worker is started for each device."
            )
        return Roster(tuple(placement(name, dtype, several=True)[0] for name in names), kind)
    if found is not None:
        if importlib.util.find_spec("ray") is None:
            raise BadInput(
                f"found --workers {asked.workers}, and Ray isn't installed: "
                "pip install 'surgeon[ray]', on every node."
            )
        most = None if found[1] is None else int(found[1])
        if most == 0:
            raise BadInput(f"found --workers {asked.workers}, expected at least one worker.")
        address = "auto" if found[2] == "ray" else found[2]
        return Roster((), kind, address, most, asked.gpus_per_worker, device)
    if asked.workers != "auto" and not (asked.workers.isdecimal() and int(asked.workers)):
        raise BadInput(
            f"found --workers {asked.workers}, expected a number above 0, auto, ray, or "
            "ray://HOST:PORT."
        )
    if asked.workers == "1":
        return None
    places = spread(placement(device, dtype, several=True)[0], asked.gpus_per_worker)
    n = len(places) if asked.workers == "auto" else int(asked.workers)
    if n == 1 and asked.workers == "auto":
        return None
    return Roster(
        tuple(placement(places[i % len(places)], dtype, several=True)[0] for i in range(n)), kind
    )


def spread(device: str, gpus: int) -> list[str]:
    """The places for a worker on this machine: CUDA devices in groups of so many, else `device`."""
    import torch

    if device != "cuda":
        return [device]
    names = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if len(names) < gpus:
        raise BadInput(
            f"found --gpus-per-worker {gpus}, and this machine has {len(names)}. Ask for fewer."
        )
    return ["+".join(names[i : i + gpus]) for i in range(0, len(names) - gpus + 1, gpus)]


def threads(n_workers: int) -> int:
    """torch threads of each of several workers on one machine."""
    return max(1, (os.cpu_count() or 1) // n_workers)
