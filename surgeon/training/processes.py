"""The processes of a run under `torchrun` or `accelerate launch`: how they start, which one writes.

One process is the usual case, and the same code.
"""

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from surgeon import artifact, lineage
from surgeon.errors import BadInput

if TYPE_CHECKING:
    from accelerate import Accelerator

A = TypeVar("A")
T = TypeVar("T")
PATIENCE = timedelta(days=2)
"""How long a process waits for its peers: shares of sampling differ, and one process alone writes
the result and refits a monitor. A peer that died is noticed by the launcher, not by waiting."""


def world() -> int:
    """How many processes the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the one that prints and writes; the launcher says which it is."""
    return os.environ.get("RANK", "0") == "0"


def require_launch(tracker: str | None) -> None:
    """Raise `BadInput` where accelerate was launched with an engine of its own, or the tracker is
    not installed."""
    for engine in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{engine}", "").lower() == "true":
            raise BadInput(
                f"accelerate was launched with {engine}. Launch it with --multi_gpu; to share the "
                "weights among the processes add --set parallel=fsdp."
            )
    if tracker is None:
        return
    from accelerate.tracking import get_available_trackers

    if tracker not in [str(getattr(t, "value", t)) for t in get_available_trackers()]:
        raise BadInput(f"tracker {tracker!r} is not installed: pip install {tracker}")


def start(device: str, tracker: str | None, directory: Path) -> "Accelerator":
    """The processes, devices and trackers of this run; tracked metrics go to `directory`."""
    from accelerate import Accelerator, InitProcessGroupKwargs

    if ":" in device:
        import torch

        torch.cuda.set_device(device)
    # Precision follows from the checkpoint and --dtype, not from accelerate's own configuration.
    return Accelerator(
        cpu=device == "cpu", mixed_precision="no", log_with=tracker, project_dir=directory,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )  # fmt: skip


def end() -> NoReturn:
    """End a launched process whose work is done, with status 0.

    Threads of the group outlive it, and one that asks for the interpreter's lock while the
    interpreter ends aborts the process ("terminate called without an active exception"), which the
    launcher takes for a failed run. So the interpreter's own end is left out.
    """
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def first(accelerator: "Accelerator", work: Callable[[], T]) -> T:
    """What `work` returns in the first process, or the `BadInput` it raises, for all of them."""
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except BadInput as error:
            if accelerator.num_processes == 1:
                raise
            outcome[1] = str(error)
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise BadInput(outcome[1])
    return outcome[0]


def once(
    out: Path,
    kind: type[A],
    work: Callable[["Accelerator", Path], A],
    *,
    run: lineage.Run,
    device: str,
    tracker: str | None,
) -> A:
    """`artifact.once` for several processes: all of them work, the first one begins and finishes.

    Tracked metrics go to the directory `training`.
    """
    accelerator = start(device, tracker, out.with_name(f"{out.name}.partial") / "training")
    partial = first(accelerator, lambda: lineage.begin(out, **run._asdict()))
    if partial is None:
        return replace(artifact.read(kind, out), already=True)  # pyright: ignore
    try:
        value = work(accelerator, partial)
        if accelerator.is_main_process:
            artifact.write(partial, value)
            lineage.finish(partial, out)
    finally:
        lineage.let_go(partial)
    accelerator.wait_for_everyone()
    return replace(value, out=out)  # pyright: ignore


@contextmanager
def tracking(accelerator: "Accelerator", settings: Mapping[str, Any]) -> Iterator[None]:
    """Trackers get the metrics that are logged inside the block."""
    config = {
        name: str(value) if value is None or isinstance(value, list) else value
        for name, value in lineage.plain(dict(settings)).items()
    }
    accelerator.init_trackers("surgeon", config=config)
    yield
    # Not end_training(), which would part the processes before the result is written.
    for tracker in accelerator.trackers:
        tracker.finish()
