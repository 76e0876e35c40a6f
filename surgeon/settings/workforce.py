"""Who does the work: a group that verbs share whose work can be parted."""

from typing import Annotated

from surgeon.settings.schema import UNRECORDED, Count, Many, Metavar, settings


@settings
class Workforce:
    """Who does the work. Changes no file that is written."""

    workers: Annotated[str, UNRECORDED, Metavar("N|auto|[N@]ray[://HOST:PORT]")] = "1"
    """1: this process. N: so many processes, over the CUDA devices if there are any. auto: one
    per CUDA device. ray: actors on the Ray cluster that this machine belongs to, or on the one
    named; N@ray at most N of them."""
    devices: Annotated[Many[str], UNRECORDED, Metavar("DEVICE,...")] = ()
    """One process per device named, as in --device; a device may be named twice."""
    gpus_per_worker: Annotated[Count, UNRECORDED] = 1
    """GPUs that a worker spreads a model over, where workers choose their devices themselves."""
