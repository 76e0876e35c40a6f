"""Where an artifact came from, and how it comes to be whole: partial directory, then one rename.

Every directory a verb writes holds `surgeon.json`: the verb, its arguments, its inputs by digest,
the versions that made it and the seed. The work happens in `OUT.partial`; it becomes `OUT` by an
atomic rename, so a directory that exists is complete, and a killed run continues where it was.
"""

import atexit
import fcntl
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon import __version__
from surgeon.errors import BadInput

if TYPE_CHECKING:
    import numpy as np

FILE = "surgeon.json"
FORMAT = 2
"""Of `surgeon.json`; files without one are of version 1 and lack the command line."""
COMMAND: ContextVar[str | None] = ContextVar("COMMAND", default=None)
"""The command line that is running, kept in `surgeon.json`; None where Python called a function."""
PACKAGES = ("torch", "transformers", "mergekit", "safetensors", "peft", "accelerate", "hmmlearn")
SCRATCH: list[Path] = []
"""Directories that go with this process."""
DISK_RESERVE = 64 << 20
"""Bytes that are left free on a disk when room is checked before writing."""
_held: dict[Path, int] = {}
"""Partial directory -> descriptor of the lock on it, kept until the run is finished."""
_sources: list[dict[str, dict[str, tuple[int, ...]]]] = []
"""Of each verb that runs: digest -> the files that it was made of, each with its state before it
was read."""


class Run(NamedTuple):
    """What makes a run this run: with other arguments, inputs or seed it is another one."""

    verb: str
    arguments: Mapping[str, object]
    inputs: dict[str, str]
    """Name -> digest."""
    seed: int | None = None


def begin(
    out: str | Path,
    *,
    verb: str,
    arguments: Mapping[str, object],
    inputs: dict[str, str],
    seed: int | None = None,
) -> Path | None:
    """Return the directory to work in, `OUT.partial`; None when `OUT` already holds this very run.

    The run is the same when verb, arguments, inputs (name -> digest) and seed are the same. Raises
    `BadInput` naming what differs when `OUT` or `OUT.partial` belongs to another run, or when `OUT`
    is something this package didn't write.
    """
    out = Path(out)
    run = {"verb": verb, "arguments": plain(arguments), "inputs": inputs, "seed": seed}
    partial = out.with_name(out.name + ".partial")
    while True:
        if out.exists() or out.is_symlink():
            refuse_foreign(out)
            refuse_other_run(out, read(out) or {}, run)
            return None
        if partial.exists():
            _refuse_foreign_partial(partial)
        try:
            partial.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(
                f"{partial} can't be made: {error.strerror}. Choose another --out."
            ) from error
        if not _hold(partial):
            continue
        if not out.exists():
            break
        # Another process has finished meanwhile, and this directory was made just now.
        let_go(partial)
        partial.rmdir()
    try:
        if (found := read(partial)) is not None:
            refuse_other_run(partial, found, run)
        else:
            record = {"format": FORMAT, **run, **typed(out), "versions": versions()}
            write_json(partial / FILE, record)
    except BaseException:
        let_go(partial)
        raise
    return partial


def _refuse_foreign_partial(partial: Path) -> None:
    """Raise `BadInput` for a directory that no run has begun."""
    # Killed between mkdir and the first write: nothing in it can be of use.
    if not (partial / FILE).is_file() and any(
        path.name not in (FILE, f".{FILE}.tmp") for path in partial.iterdir()
    ):
        raise BadInput(f"{partial} exists and was not written by surgeon. Move it away.")


def _hold(partial: Path) -> bool:
    """Lock a partial directory for this process; False where it is another one by now.

    Raises `BadInput` where another process works in it. The lock goes with the process. One that
    lies in a locked directory needs none of its own: a sweep has a thousand, and a process can have
    only so many open files.
    """
    if partial in _held and _is(partial, _held[partial]):
        return True
    if any(above in _held for above in partial.parents):
        return True
    let_go(partial)
    try:
        descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise BadInput(
            f"another process is writing {partial}. Wait until it has ended, or choose another "
            "--out."
        ) from error
    except OSError:  # a disk without locks
        pass
    _held[partial] = descriptor
    # It may have got its final name between the two calls.
    return _is(partial, descriptor)


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def let_go(partial: Path) -> None:
    """Let other processes work in a partial directory; after `finish` there is nothing to do."""
    if partial in _held:
        os.close(_held.pop(partial))


def typed(out: Path) -> dict[str, str]:
    """The command line that is running, and the directory it runs in, seen from that of `out`: so
    the paths in it are found again, wherever the whole lies then. Nothing where Python called."""
    if (command := COMMAND.get()) is None:
        return {}
    return {"command": command, "directory": os.path.relpath(Path.cwd(), out.parent.resolve())}


def finish(partial: Path, out: str | Path) -> None:
    """Make the partial directory's content durable and give it its final name.

    Raises `BadInput` where an input changed or went away while the run was reading it, or where
    something came to be at `out` meanwhile.
    """
    out = Path(out)
    _require_unchanged(partial)
    for path in partial.rglob("*"):
        if path.is_file() and not path.is_symlink():
            sync(path)
    sync(partial)
    if out.exists():
        raise BadInput(f"{out} came to be while {partial} was written. Move one of them away.")
    os.rename(partial, out)
    let_go(partial)
    sync(out.parent)


def _require_unchanged(partial: Path) -> None:
    """Raise `BadInput` for an input that isn't any more what the run's record says, or is gone."""
    inputs = (read(partial) or {}).get("inputs") or {}
    for digest in inputs.values() if _sources else ():
        for file, before in _sources[-1].get(digest, {}).items():
            if not os.path.exists(file):
                if _passing(file):
                    continue
                raise BadInput(
                    f"{file} went away while it was read, so nobody can say what {partial} was "
                    f"made of. Put it back, remove {partial} and run the same command again."
                )
            if _state(os.stat(file)) == before:
                continue
            # Touched, or fetched again: what counts is the content.
            now = _sources[-1].get(_content(file), {})
            if now.get(file) != before:
                raise BadInput(
                    f"{file} changed while it was read, so nobody can say what {partial} was made "
                    f"of. Remove {partial} and run the same command again."
                )


def _passing(file: str) -> bool:
    """Whether a file is a run's own, and so may go: temporary, or in a directory that gets another
    name when it is whole."""
    above = Path(file).parents
    return any(p.suffix == ".partial" or p in SCRATCH or p.resolve() in SCRATCH for p in above)


def _state(status: os.stat_result) -> tuple[int, ...]:
    return status.st_size, status.st_mtime_ns, status.st_ino


def made_of(digest: str, *parts: str) -> str:
    """Say that a digest was made of files with these digests; returns it."""
    if _sources:
        known = _sources[-1]
        files = {file: state for part in parts for file, state in known.get(part, {}).items()}
        known.setdefault(digest, {}).update(files)
    return digest


@contextmanager
def reading() -> Iterator[None]:
    """A verb runs inside the block: what is read there may be its input, and nothing else."""
    _sources.append({})
    try:
        yield
    finally:
        _sources.pop()


def check(out: str | Path, run: Run) -> None:
    """Raise `BadInput` where `begin` would; writes nothing."""
    out = Path(out)
    refuse_foreign(out)
    for place in (out, out.with_name(out.name + ".partial")):
        if (there := read(place)) is not None:
            refuse_other_run(place, there, plain(run._asdict()))


def read(path: str | Path) -> dict[str, Any] | None:
    """The lineage of a directory, or None where it has none."""
    file = Path(path) / FILE
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file} is not valid JSON ({error}). Move {path} away.") from error
    if not isinstance(found, dict):
        raise BadInput(f"{file} holds no JSON object. Move {path} away.")
    return found


def read_object(file: str | Path) -> dict[str, Any]:
    """A JSON object this package wrote; raises `BadInput` when it is missing or damaged."""
    try:
        value = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{file} can't be read as JSON ({error}).") from error
    if not isinstance(value, dict):
        raise BadInput(f"{file} holds a {type(value).__name__}, expected a JSON object.")
    return value


def refuse_foreign(out: str | Path) -> None:
    """Raise `BadInput` when there is something at `out` that this package didn't write."""
    out = Path(out)
    if (out.exists() or out.is_symlink()) and read(out) is None:
        raise BadInput(f"{out} exists and was not written by surgeon. Choose another --out.")


def refuse_other_run(path: Path, found: dict[str, Any], run: dict[str, Any]) -> None:
    """Raise `BadInput` listing, argument by argument, how the run at `path` differs from `run`.

    A run of format 1 may lack an argument: it was made before there was such a setting.
    """
    if "format" not in found:
        there = found.get("arguments")
        there = there if isinstance(there, dict) else {}
        known = {name: value for name, value in run["arguments"].items() if name in there}
        run = {**run, "arguments": known}
    differing = differences({key: found.get(key) for key in run}, run)
    if differing:
        raise BadInput(
            f"{path} holds another run: {'; '.join(differing)}. "
            "Choose another --out, or remove it first."
        )


def differences(there: Any, here: Any, where: str = "") -> list[str]:
    """Human-readable differences between two JSON values, as `name: there -> here`.

    An empty list is the same as nothing: both are a setting of several values that isn't given.
    """
    if isinstance(there, dict) and isinstance(here, dict):
        return [
            line
            for key in sorted(there.keys() | here.keys())
            for line in differences(there.get(key), here.get(key), f"{where}.{key}".strip("."))
        ]
    if there == here or (there in ([], None) and here in ([], None)):
        return []
    return [f"{where} is {short(there)} there and {short(here)} here"]


def short(value: Any, limit: int = 60) -> str:
    """`value` as JSON, cut to `limit` characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def plain(value: object) -> Any:
    """`value` as it comes back from JSON: tuples become lists, paths become strings."""
    return json.loads(json.dumps(value, default=str))


def versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that shape results."""
    found = {"surgeon": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write_text(path: str | Path, text: str) -> None:
    """Write a small file so that a reader sees the old content or the new, never a part."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    # Half a surrogate pair, as in the name of a file that is no text: what stands for it in JSON.
    with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN is refused (it is not JSON)."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str, allow_nan=False)
    write_text(path, text + "\n")


def write_tensors(
    path: str | Path, arrays: "Mapping[str, np.ndarray]", metadata: dict[str, str] | None = None
) -> None:
    """Write arrays as a safetensors file so that a reader sees the old content or the new."""
    import numpy as np
    from safetensors.numpy import save_file

    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    save_file(whole, temporary, metadata=metadata)
    if metadata:
        _sort_metadata(temporary)
    sync(temporary)
    os.replace(temporary, path)


def _sort_metadata(file: Path) -> None:
    """Put the metadata of a safetensors file in order: the library's own differs from one process
    to the next, and equal content is to be equal bytes."""
    with open(file, "r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > size:
            raise RuntimeError(f"the header of {file} has {size} bytes, and {len(text)} in order")
        stream.seek(8)
        stream.write(text.ljust(size))


def scratch() -> Path:
    """A new directory for what lasts no longer than this process."""
    directory = Path(tempfile.mkdtemp(prefix="surgeon-"))
    SCRATCH.append(directory.resolve())
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def file_digest(path: str | Path) -> str:
    """`sha256:` digest of a file's bytes."""
    before = _state(os.stat(path))
    digest = _content(path)
    if _sources:
        # The first state in which it had this content is that of every digest made of it.
        _sources[-1].setdefault(digest, {}).setdefault(os.path.abspath(path), before)
    return digest


def _content(path: str | Path) -> str:
    with open(path, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_files(files: Iterable[str | Path]) -> str:
    """`sha256:` digest of several files in their order."""
    parts = [file_digest(file) for file in files]
    return made_of(digest_of(parts), *parts)


def digest_of(value: Any) -> str:
    """`sha256:` digest of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def require_room(out: str | Path, n_bytes: int, what: str) -> None:
    """Raise `BadInput` when the disk of `out` has less than `n_bytes` and a small reserve free."""
    free = free_bytes(out)
    if free < n_bytes + DISK_RESERVE:
        raise BadInput(
            f"{what} needs {n_bytes / 1e9:.2f} GB and {existing_parent(out)} has "
            f"{free / 1e9:.2f} GB free. Free some space or choose an --out on another disk."
        )


def existing_parent(path: str | Path) -> Path:
    """The path itself, or the nearest directory above it that exists."""
    path = Path(path).absolute()
    return path if path.exists() else existing_parent(path.parent)


def free_bytes(path: str | Path) -> int:
    """Bytes free on the disk that `path` is on, or would be."""
    return shutil.disk_usage(existing_parent(path)).free


def sync(path: Path) -> None:
    """Flush a file or a directory entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
