"""The saved state of a training run: parameters, teacher and optimizer as safetensors.

The random state and the place in the data aren't in it: both follow from the seed and the step.
"""

import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from surgeon import jsonl, lineage
from surgeon.training.mastered import MasteredAdamW
from surgeon.training.student import Student
from surgeon.training.tuning import Teacher, trainable

METRICS = "metrics.jsonl"
MOMENTS = ("step", "exp_avg", "exp_avg_sq", "master")


class History(NamedTuple):
    """What a training run has behind it."""

    records: list[dict[str, float]]
    """The numbers of every step."""
    warnings: dict[str, str]
    """Metric -> the sentence on its collapse."""


def states(directory: Path) -> list[Path]:
    """The complete saved states of a run, oldest first."""
    return sorted(p for p in directory.glob("state-*") if p.suffix != ".partial")


def forget_states(work: Path) -> None:
    """Remove the states of a run whose result is written in `work`, once that is on the disk."""
    for path in filter(Path.is_file, work.iterdir()):
        lineage.sync(path)
    for state in states(work / "training"):
        drop(state)
    for rest in (work / "training").glob("state-*.partial"):
        shutil.rmtree(rest)


def drop(state: Path) -> None:
    """Remove a state so that a kill meanwhile doesn't leave a part of it to be resumed from."""
    gone = state.with_name(state.name + ".partial")
    shutil.rmtree(gone, ignore_errors=True)
    state.rename(gone)
    shutil.rmtree(gone)


def save(
    directory: Path,
    step: int,
    student: Student,
    optimizer: torch.optim.AdamW | MasteredAdamW,
    teacher: Teacher | None,
) -> None:
    """Write parameters, teacher and optimizer after `step` steps; the state before it goes."""
    from safetensors.torch import save_file

    parameters = trainable(student.model)
    moments = {
        f"{key}.{name}": value
        for name, p in parameters.items()
        for key, value in optimizer.state[p].items()
    }
    parts = {
        "student": student.whole(dict(parameters)),
        "teacher": student.whole(teacher.tensors if teacher is not None else {}),
        "optimizer": student.whole(moments),
    }
    if student.accelerator.is_main_process:
        out = directory / f"state-{step:06d}"
        partial = out.with_name(out.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, tensors in parts.items():
            save_file(
                {k: t.contiguous() for k, t in tensors.items()}, partial / f"{name}.safetensors"
            )
        lineage.write_json(partial / "state.json", {"step": step})
        lineage.finish(partial, out)
        for old in states(directory):
            if old != out:
                drop(old)
    student.accelerator.wait_for_everyone()


def resume(
    directory: Path,
    student: Student,
    optimizer: torch.optim.AdamW | MasteredAdamW,
    teacher: Teacher | None,
) -> tuple[int, History]:
    """Bring back the last saved state; the steps it has behind it, and their records."""
    from safetensors.torch import load_file

    directory.mkdir(parents=True, exist_ok=True)
    saved = states(directory)
    step = 0
    if saved:
        step = int(lineage.read_object(saved[-1] / "state.json")["step"])
        parts = {
            name: load_file(saved[-1] / f"{name}.safetensors")
            for name in ("student", "teacher", "optimizer")
        }
        parameters = trainable(student.model)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(_like(parts["student"][name], parameter))
                kept = {key: parts["optimizer"].get(f"{key}.{name}") for key in MOMENTS}
                optimizer.state[parameter] = {
                    key: tensor if key == "step" else _like(tensor, parameter)
                    for key, tensor in kept.items()
                    if tensor is not None
                }
            for name, tensor in (teacher.tensors if teacher is not None else {}).items():
                tensor.copy_(_like(parts["teacher"][name], tensor))
    # A kill may have come after steps that weren't saved.
    rows = [row for _, row in jsonl.rows(directory / METRICS) if row["step"] <= step]
    # Every process has read the file before the first one shortens it.
    student.accelerator.wait_for_everyone()
    if student.accelerator.is_main_process:
        jsonl.write(directory / METRICS, rows)
    student.accelerator.wait_for_everyone()
    warnings = {name: text for row in rows for name, text in row.pop("warnings", {}).items()}
    return step, History(rows, warnings)


def _like(tensor: Tensor, other: Tensor) -> Tensor:
    """A full tensor as the device and the sharding of another have it."""
    tensor = tensor.to(other.device)
    if not hasattr(other, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, other.device_mesh, other.placements)  # pyright: ignore
