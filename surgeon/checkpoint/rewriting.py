"""Copies of a checkpoint with some of its tensors changed."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon import lineage
from surgeon.checkpoint.directory import INDEX, Checkpoint
from surgeon.checkpoint.loading import label_dtype
from surgeon.checkpoint.tensors import TensorInfo, read_tensor, some

if TYPE_CHECKING:
    from torch import Tensor

PIECE = 1 << 20
"""Bytes per write: with tens of megabytes at once, Linux takes several times as long."""


def rewrite(
    source: Checkpoint,
    out: Path,
    edit: "Callable[[str, Tensor], Tensor]",
    touched: Callable[[str], bool],
    *,
    threads: int = 1,
) -> None:
    """Copy `source` into the existing directory `out`, passing the touched tensors through `edit`.

    Shards without a touched tensor are hard-linked where the file system allows (copied
    otherwise). The others are written anew, `threads` shards at a time and of each one tensor in
    memory. `edit(name, tensor)` must keep shape and dtype. It may change its tensor in place and
    return it, and must not keep it. Shards that an earlier, killed run wrote are kept. Nothing of
    `source` is changed. The caller renames `out` into place.
    """
    source.copy_side_files(out)
    if source.indexed:
        shutil.copy2(source.path / INDEX, out / INDEX)
    waiting = []
    # A shard is flushed to the disk while the next ones are computed.
    with ThreadPoolExecutor(1) as flusher, ThreadPoolExecutor(threads) as writers:
        for shard, names in source.shards.items():
            target = out / shard
            if target.exists():
                continue  # it got its name only when it was whole
            edited = {name: source.tensors[name] for name in names if touched(name)}
            if edited:
                work = (source.path / shard, target, edited, edit, flusher)
                waiting.append(writers.submit(_rewrite_shard, *work))
            else:
                link_or_copy(source.path / shard, target)
        try:
            for flush in [written.result() for written in waiting]:
                flush.result()
        finally:
            for written in waiting:
                written.cancel()  # after an error or an interrupt, start no further shard
    label_dtype(out)


def _rewrite_shard(
    source: Path,
    target: Path,
    edited: dict[str, TensorInfo],
    edit: "Callable[[str, Tensor], Tensor]",
    flusher: ThreadPoolExecutor,
) -> "Future[None]":
    """Write `source` with some tensors edited; header and layout stay. Its name comes last."""
    import torch

    temporary = target.with_name(f".{target.name}.tmp")
    # One memory for all tensors: fresh pages cost more than the reading.
    scratch = torch.empty(max(info.nbytes for info in edited.values()), dtype=torch.uint8)
    with open(source, "rb", 0) as old_file, open(temporary, "wb", 0) as new_file:
        done = 0
        for name, info in sorted(edited.items(), key=lambda item: item[1].start):
            copy_range(old_file, new_file, done, info.start)
            old = read_tensor(old_file, info, scratch)
            new = edit(name, old)
            if new.shape != info.shape or new.dtype != old.dtype:
                raise ValueError(
                    f"edit changed {name} from {old.dtype}{list(info.shape)} to "
                    f"{new.dtype}{list(new.shape)}; it must keep both."
                )
            _write_all(new_file, new.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            done = info.start + info.nbytes
        copy_range(old_file, new_file, done, os.fstat(old_file.fileno()).st_size)
    return flusher.submit(_flush_and_name, temporary, target)


def copy_range(source: FileIO, target: FileIO, begin: int, end: int) -> None:
    """Append bytes `begin` to `end` of `source` to `target`, a piece in memory at a time."""
    piece = memoryview(bytearray(min(PIECE, max(0, end - begin))))
    source.seek(begin)
    while begin < end:
        count = some(source.readinto(piece[: end - begin]), source)
        _write_all(target, piece[:count])
        begin += count


def _write_all(file: FileIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data[:PIECE]) :]


def _flush_and_name(temporary: Path, target: Path) -> None:
    lineage.sync(temporary)
    os.replace(temporary, target)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a finished file, or copy it where links are not possible (another file system)."""
    real = source.resolve()
    try:
        os.link(real, target)
    except OSError:
        temporary = target.with_name(f".{target.name}.tmp")
        shutil.copyfile(real, temporary)
        lineage.sync(temporary)
        os.replace(temporary, target)


def link_directory(source: Path, target: Path) -> None:
    """A directory of finished files once more, each hard-linked or copied; it has its name last."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for file in source.rglob("*"):
        if file.is_file():
            copy = partial / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(file, copy)
    partial.rename(target)
