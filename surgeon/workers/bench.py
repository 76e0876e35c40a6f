"""A worker's own place: its device, the one model that it holds, and the loop it runs."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon import __version__, progress
from surgeon.errors import BadInput

if TYPE_CHECKING:
    import torch

    from surgeon.families import Subject

Send = Callable[[tuple[Any, ...]], None]
Job = Callable[["Bench", Any], Iterator[tuple[Any, Any, bool]]]
"""A function of a module: its results are (unit, value, whether the unit is done with it)."""


class Start(NamedTuple):
    """What a worker is told before its first order."""

    device: str
    dtype: "torch.dtype | None"
    threads: int
    """Of torch; 0: as many as it chooses."""
    path: tuple[str, ...]
    """Where Python looks for modules, the user's own among them."""
    directory: str
    """What relative paths are relative to."""
    near: bool = True
    """Whether it runs on the driver's machine, and shares its files."""


class Bench:
    """Where a worker works."""

    def __init__(self, start: Start):
        self.device, self.dtype, self.near = start.device, start.dtype, start.near
        self._live: Any = None
        self._here: dict[str, Subject] = {}

    def take(self, subject: "Subject") -> tuple[Any, Any]:
        """The live model and the tokenizer of a subject; those taken before are let go of."""
        from surgeon.live.families import OneLive

        if self._live is None:
            self._live = OneLive(self.device, self.dtype)
        return self._live.take(self.subject(subject))

    def subject(self, subject: "Subject") -> "Subject":
        """The driver's subject, as it is found on this machine; raises `BadInput` where there is
        none, or another one."""
        if self.near:
            return subject
        key = f"{subject.spec} {subject.digest}"
        if key not in self._here:
            self._here[key] = found(subject)
        return self._here[key]


def found(subject: "Subject") -> "Subject":
    """The same checkpoint on a machine of its own: at the same path, or by the same hub id."""
    from surgeon.families import subjects

    try:
        (here,) = subjects([subject.spec])
        if here.family is not None and here.checkpoint is None:
            here.family.require_unchanged()
    except BadInput as error:
        raise BadInput(
            f"{os.uname().nodename} can't open {subject.spec}: {error} Checkpoints must lie under "
            "the same path on every node, or be named by hub ids."
        ) from error
    if here.digest != subject.digest:
        raise BadInput(
            f"{subject.spec} on {os.uname().nodename} is another one than here (digest "
            f"{here.digest[:19]}, here {subject.digest[:19]}). Copy it there anew."
        )
    return here._replace(name=subject.name)


def set_up(start: Start) -> Bench:
    """Make this process a worker."""
    for place in start.path:
        if place not in sys.path:
            sys.path.append(place)
    if Path(start.directory).is_dir():
        os.chdir(start.directory)
    progress.silence_bars()
    if start.threads or start.device.startswith("cuda:"):
        import torch

        if start.threads:
            torch.set_num_threads(start.threads)
        if start.device.startswith("cuda:"):
            torch.cuda.set_device(re.split("[+=]", start.device)[0])
    return Bench(start)


def hello(bench: Bench) -> tuple[Any, ...]:
    """A worker's first message."""
    info = {"host": os.uname().nodename, "pid": os.getpid(), "device": bench.device}
    return "ready", info | {"version": __version__, "python": sys.version_info[:2]}


def work(bench: Bench, job: Job, order: Any, send: Send) -> None:
    """Carry out one order; every result is sent, and last how it ended."""
    try:
        for unit, value, done in job(bench, order):
            send(("result", unit, value, done))
        last: tuple[Any, ...] = ("end",)
    except BadInput as error:
        last = ("refused", str(error))
    except Exception:
        # What it was is for the driver to raise: it alone has a user.
        send(("failed", traceback.format_exc()))
        raise
    send(last)


class Lines:
    """A standard error whose lines are messages."""

    def __init__(self, send: Send):
        self.send, self.rest = send, ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in filter(None, lines):
            self.send(("said", line))
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False
